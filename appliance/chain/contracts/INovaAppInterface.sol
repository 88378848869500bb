// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title What the app registry expects of the contract behind an app.
/// @notice An app names such a contract as its `dappContract`; the registry tells it which TEE wallets act for the app.
interface INovaAppInterface {
    /// @notice The registry whose calls this contract accepts.
    function novaAppRegistry() external view returns (address);

    /// @notice Names another registry; for the owner only.
    function setNovaAppRegistry(address registry) external;

    /// @notice An instance of the app became active. Called by the registry; calling it again changes nothing.
    function addOperator(address wallet, uint256 appId, uint256 versionId, uint256 instanceId) external;

    /// @notice An instance of the app is no longer active. Called by the registry; calling it again changes nothing.
    function removeOperator(address wallet, uint256 appId, uint256 versionId, uint256 instanceId) external;
}
