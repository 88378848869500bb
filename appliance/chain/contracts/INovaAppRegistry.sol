// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title The views of NovaAppRegistry that Nova KMS reads (chain §1).
/// @notice Apps have versions, versions have running instances. Each status is declared `uint8` and not as an enum, so
/// that a number added by a later registry is data to whoever reads it and not a revert in the decoder.
interface INovaAppRegistry {
    /// @param status 0 ACTIVE, 1 INACTIVE, 2 REVOKED
    struct App {
        uint256 id;
        address owner;
        bytes32 teeArch;
        address dappContract;
        string metadataUri;
        uint256 latestVersionId;
        uint256 createdAt;
        uint8 status;
        address appWallet;
    }

    /// @param status 0 ENROLLED, 1 DEPRECATED, 2 REVOKED
    struct Version {
        uint256 id;
        string versionName;
        bytes32 codeMeasurement;
        string imageUri;
        string auditUrl;
        string auditHash;
        string githubRunId;
        uint8 status;
        uint256 enrolledAt;
        address enrolledBy;
    }

    /// @param status 0 ACTIVE, 1 STOPPED, 2 FAILED
    struct Instance {
        uint256 id;
        uint256 appId;
        uint256 versionId;
        address operator;
        string instanceUrl;
        bytes teePubkey;
        address teeWalletAddress;
        bool zkVerified;
        uint8 status;
        uint256 registeredAt;
    }

    /// @notice An app; id 0 if there is none.
    function getApp(uint256 appId) external view returns (App memory);

    /// @notice A version of an app; id 0 if there is none.
    function getVersion(uint256 appId, uint256 versionId) external view returns (Version memory);

    /// @notice An instance; id 0 if there is none.
    function getInstance(uint256 instanceId) external view returns (Instance memory);

    /// @notice The instance of a TEE wallet; id 0 if there is none (some deployments revert instead).
    function getInstanceByWallet(address wallet) external view returns (Instance memory);

    /// @notice The TEE wallets of an app's active instances.
    function getActiveInstances(uint256 appId) external view returns (address[] memory);

    /// @notice The ids of all instances that were ever registered for a version.
    function getInstancesForVersion(uint256 appId, uint256 versionId) external view returns (uint256[] memory);
}
