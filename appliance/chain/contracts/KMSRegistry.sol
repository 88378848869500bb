// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INovaAppInterface} from "./INovaAppInterface.sol";
import {INovaAppRegistry} from "./INovaAppRegistry.sol";

/// @title The coordination contract of a Nova KMS cluster (chain §2).
/// @notice Holds one word of state for the cluster, the hash of its master secret, and mirrors the registry's callbacks
/// as a list of operators. The list is for people and explorers: who is a member of the cluster is read from the app
/// registry alone.
/// @dev There is no proxy, no pause and no transfer of ownership: what the owner can do is listed here and nowhere else.
contract KMSRegistry is INovaAppInterface {
    /// @dev The registry's numbers for an instance that runs and a version that may seed a cluster.
    uint8 private constant INSTANCE_ACTIVE = 0;
    uint8 private constant VERSION_ENROLLED = 0;

    /// @notice Who may name the registry and the app id, and reset the hash. Fixed at deployment.
    address public immutable OWNER;

    /// @inheritdoc INovaAppInterface
    address public novaAppRegistry;

    /// @notice The app whose instances are the cluster; 0 until it is set.
    uint256 public kmsAppId;

    /// @notice keccak256 of the cluster's master secret; 0 while nobody has claimed it.
    bytes32 public masterSecretHash;

    address[] private _operators;

    /// @dev Place of a wallet in `_operators` counted from 1, so that 0 says that it is not there.
    mapping(address wallet => uint256 place) private _placeOf;

    event NovaAppRegistrySet(address indexed registry);
    event KmsAppIdSet(uint256 indexed appId);
    event OperatorAdded(address indexed operator, uint256 indexed appId, uint256 versionId, uint256 instanceId);
    event OperatorRemoved(address indexed operator, uint256 indexed appId, uint256 versionId, uint256 instanceId);
    event MasterSecretHashSet(bytes32 indexed hash, address indexed setter);
    event MasterSecretHashReset(address indexed resetter);

    // Errors carry no arguments: a node recognises them by selector, and so they are the same on every deployment.

    /// @notice Only the owner may do this.
    error NotOwner();
    /// @notice Only the app registry may do this.
    error OnlyNovaAppRegistry();
    /// @notice With the zero address as owner nobody could ever name the app id.
    error InvalidOwnerAddress();
    /// @notice The zero address is no registry.
    error InvalidRegistryAddress();
    /// @notice App id 0 stands for "not set".
    error InvalidAppId();
    /// @notice The app id can be set once.
    error AppIdAlreadySet();
    /// @notice The callback speaks of another app, or the app id is not set yet.
    error AppIdMismatch();
    /// @notice A zero hash stands for "not set".
    error InvalidMasterSecretHash();
    /// @notice Someone else was faster; sync the master secret from them.
    error MasterSecretHashAlreadySet();
    /// @notice The caller is not an active, verified instance of the KMS app that runs an enrolled version.
    error NotAuthorizedToSetHash();
    /// @notice There is no operator at this index.
    error OperatorIndexOutOfRange();

    modifier onlyOwner() {
        if (msg.sender != OWNER) revert NotOwner();
        _;
    }

    /// @dev The caller is checked before the app id, so that a stranger learns nothing but that it is one.
    modifier onlyRegistryFor(uint256 appId) {
        if (msg.sender != novaAppRegistry) revert OnlyNovaAppRegistry();
        if (appId == 0 || appId != kmsAppId) revert AppIdMismatch();
        _;
    }

    constructor(address initialOwner, address appRegistry) {
        if (initialOwner == address(0)) revert InvalidOwnerAddress();
        OWNER = initialOwner;
        _setNovaAppRegistry(appRegistry);
    }

    /// @inheritdoc INovaAppInterface
    /// @dev Operators that the previous registry added stay listed until the new one removes them.
    function setNovaAppRegistry(address registry) external onlyOwner {
        _setNovaAppRegistry(registry);
    }

    /// @notice Names the app whose instances are the cluster; once.
    function setKmsAppId(uint256 appId) external onlyOwner {
        if (kmsAppId != 0) revert AppIdAlreadySet();
        if (appId == 0) revert InvalidAppId();
        kmsAppId = appId;
        emit KmsAppIdSet(appId);
    }

    /// @inheritdoc INovaAppInterface
    function addOperator(address wallet, uint256 appId, uint256 versionId, uint256 instanceId)
        external
        onlyRegistryFor(appId)
    {
        if (_placeOf[wallet] != 0) return;
        _operators.push(wallet);
        _placeOf[wallet] = _operators.length;
        emit OperatorAdded(wallet, appId, versionId, instanceId);
    }

    /// @inheritdoc INovaAppInterface
    /// @dev The last operator takes the place of the removed one, so the cost does not grow with the list.
    function removeOperator(address wallet, uint256 appId, uint256 versionId, uint256 instanceId)
        external
        onlyRegistryFor(appId)
    {
        uint256 place = _placeOf[wallet];
        if (place == 0) return;
        address last = _operators[_operators.length - 1];
        _operators[place - 1] = last;
        _placeOf[last] = place;
        _operators.pop();
        delete _placeOf[wallet];
        emit OperatorRemoved(wallet, appId, versionId, instanceId);
    }

    /// @notice Whether a wallet is listed as an operator.
    function isOperator(address wallet) external view returns (bool) {
        return _placeOf[wallet] != 0;
    }

    /// @notice How many operators are listed.
    function operatorCount() external view returns (uint256) {
        return _operators.length;
    }

    /// @notice The operator at an index from 0; a removal may move the last one to another index.
    function operatorAt(uint256 index) external view returns (address) {
        if (index >= _operators.length) revert OperatorIndexOutOfRange();
        return _operators[index];
    }

    /// @notice All operators, in no particular order.
    function getOperators() external view returns (address[] memory) {
        return _operators;
    }

    /// @notice Claims the master secret's hash for the cluster: the first eligible node to call it seeds the cluster.
    /// @dev A deprecated version may run but not seed.
    /// @param newHash keccak256 of the master secret, not zero
    function setMasterSecretHash(bytes32 newHash) external {
        if (newHash == bytes32(0)) revert InvalidMasterSecretHash();
        if (masterSecretHash != bytes32(0)) revert MasterSecretHashAlreadySet();
        if (!_maySeed(msg.sender)) revert NotAuthorizedToSetHash();
        masterSecretHash = newHash;
        emit MasterSecretHashSet(newHash, msg.sender);
    }

    /// @notice Forgets the hash so that another can be claimed. Nodes that adopt the next secret drop what was stored
    /// under this one.
    function resetMasterSecretHash() external onlyOwner {
        if (masterSecretHash == bytes32(0)) return;
        masterSecretHash = bytes32(0);
        emit MasterSecretHashReset(msg.sender);
    }

    function _setNovaAppRegistry(address registry) private {
        if (registry == address(0)) revert InvalidRegistryAddress();
        novaAppRegistry = registry;
        emit NovaAppRegistrySet(registry);
    }

    /// @dev A registry that reverts for what it does not know says the same as one that answers id 0: not authorised.
    function _maySeed(address wallet) private view returns (bool) {
        INovaAppRegistry registry = INovaAppRegistry(novaAppRegistry);
        if (address(registry).code.length == 0) return false; // a call to it would revert here, outside of the try
        try registry.getInstanceByWallet(wallet) returns (INovaAppRegistry.Instance memory instance) {
            if (instance.id == 0 || instance.teeWalletAddress != wallet) return false;
            if (kmsAppId == 0 || instance.appId != kmsAppId) return false;
            if (instance.status != INSTANCE_ACTIVE) return false;
            try registry.getVersion(kmsAppId, instance.versionId) returns (INovaAppRegistry.Version memory version) {
                return version.id != 0 && version.status == VERSION_ENROLLED;
            } catch {
                return false;
            }
        } catch {
            return false;
        }
    }
}
