// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INovaAppInterface} from "./INovaAppInterface.sol";
import {INovaAppRegistry} from "./INovaAppRegistry.sol";

/// @title DEVELOPMENT registry with the views of NovaAppRegistry. Never use it where anything is at stake.
/// @notice One owner registers apps, versions and instances by decree: nothing proves an instance's attestation, and
/// every field can be set to anything, including status numbers that do not exist. It serves the devnet and the tests;
/// on a public network use the platform's own registry.
contract NovaAppRegistry is INovaAppRegistry {
    uint8 private constant INSTANCE_ACTIVE = 0;

    /// @notice Who may change anything.
    address public immutable OWNER;

    /// @notice Whether getInstanceByWallet reverts for an unknown wallet, as some deployments do.
    bool public immutable REVERTS_UNKNOWN;

    uint256 private _appCount;
    uint256 private _instanceCount;
    mapping(uint256 appId => App) private _apps;
    mapping(uint256 appId => mapping(uint256 versionId => Version)) private _versions;
    mapping(uint256 instanceId => Instance) private _instances;
    mapping(address wallet => uint256 instanceId) private _instanceOf;
    mapping(uint256 appId => address[]) private _activeWallets;
    /// @dev Place of a wallet among its app's active ones counted from 1; a wallet has one instance and so one app.
    mapping(address wallet => uint256 place) private _activePlaceOf;
    mapping(uint256 appId => mapping(uint256 versionId => uint256[])) private _instancesOf;

    event AppRegistered(uint256 indexed appId);
    event VersionEnrolled(uint256 indexed appId, uint256 indexed versionId);
    event InstanceRegistered(uint256 indexed instanceId, address indexed wallet);
    event AppStatusSet(uint256 indexed appId, uint8 status);
    event VersionStatusSet(uint256 indexed appId, uint256 indexed versionId, uint8 status);
    event InstanceStatusSet(uint256 indexed instanceId, uint8 status);

    error NotOwner();
    error UnknownApp();
    error UnknownVersion();
    error UnknownInstance();
    error AppAlreadyRegistered();
    error WalletAlreadyRegistered();

    modifier onlyOwner() {
        if (msg.sender != OWNER) revert NotOwner();
        _;
    }

    constructor(address initialOwner, bool revertUnknown) {
        OWNER = initialOwner;
        REVERTS_UNKNOWN = revertUnknown;
    }

    // --- what only the owner does ---

    /// @notice Registers an active app under an id of the owner's choosing, so that a devnet can use the public one's.
    function registerApp(uint256 appId, address dappContract, address appWallet, string calldata metadataUri)
        external
        onlyOwner
    {
        if (_apps[appId].id != 0) revert AppAlreadyRegistered();
        _apps[appId] = App({
            id: appId,
            owner: msg.sender,
            teeArch: "nitro",
            dappContract: dappContract,
            metadataUri: metadataUri,
            latestVersionId: 0,
            createdAt: block.timestamp,
            status: 0,
            appWallet: appWallet
        });
        emit AppRegistered(appId);
    }

    /// @notice Enrols the next version of an app; versions count from 1.
    function enrollVersion(uint256 appId, string calldata versionName, bytes32 codeMeasurement)
        external
        onlyOwner
        returns (uint256 versionId)
    {
        App storage app = _existingApp(appId);
        versionId = ++app.latestVersionId;
        Version storage version = _versions[appId][versionId];
        version.id = versionId;
        version.versionName = versionName;
        version.codeMeasurement = codeMeasurement;
        version.enrolledAt = block.timestamp;
        version.enrolledBy = msg.sender;
        emit VersionEnrolled(appId, versionId);
    }

    /// @notice Registers an active, verified instance and tells the app's contract; instances count from 1.
    function registerInstance(
        uint256 appId,
        uint256 versionId,
        address operator,
        string calldata instanceUrl,
        bytes calldata teePubkey,
        address teeWallet
    ) external onlyOwner returns (uint256 instanceId) {
        _existingVersion(appId, versionId);
        if (_instanceOf[teeWallet] != 0) revert WalletAlreadyRegistered();
        instanceId = ++_instanceCount;
        _instances[instanceId] = Instance({
            id: instanceId,
            appId: appId,
            versionId: versionId,
            operator: operator,
            instanceUrl: instanceUrl,
            teePubkey: teePubkey,
            teeWalletAddress: teeWallet,
            zkVerified: true,
            status: INSTANCE_ACTIVE,
            registeredAt: block.timestamp
        });
        _instanceOf[teeWallet] = instanceId;
        _instancesOf[appId][versionId].push(instanceId);
        emit InstanceRegistered(instanceId, teeWallet);
        _activate(_instances[instanceId]);
    }

    /// @notice Sets any number as an app's status.
    function setAppStatus(uint256 appId, uint8 status) external onlyOwner {
        _existingApp(appId).status = status;
        emit AppStatusSet(appId, status);
    }

    /// @notice Sets any number as a version's status.
    function setVersionStatus(uint256 appId, uint256 versionId, uint8 status) external onlyOwner {
        _existingVersion(appId, versionId).status = status;
        emit VersionStatusSet(appId, versionId, status);
    }

    /// @notice Sets any number as an instance's status; the app's contract hears of it when that starts or stops it.
    function setInstanceStatus(uint256 instanceId, uint8 status) external onlyOwner {
        Instance storage instance = _existingInstance(instanceId);
        bool wasActive = instance.status == INSTANCE_ACTIVE;
        instance.status = status;
        emit InstanceStatusSet(instanceId, status);
        if (wasActive && status != INSTANCE_ACTIVE) _deactivate(instance);
        if (!wasActive && status == INSTANCE_ACTIVE) _activate(instance);
    }

    /// @notice Says whether an instance counts as proven.
    function setZkVerified(uint256 instanceId, bool zkVerified) external onlyOwner {
        _existingInstance(instanceId).zkVerified = zkVerified;
    }

    /// @notice Sets any bytes as an instance's key.
    function setTeePubkey(uint256 instanceId, bytes calldata teePubkey) external onlyOwner {
        _existingInstance(instanceId).teePubkey = teePubkey;
    }

    /// @notice Sets any text as an instance's URL.
    function setInstanceUrl(uint256 instanceId, string calldata instanceUrl) external onlyOwner {
        _existingInstance(instanceId).instanceUrl = instanceUrl;
    }

    /// @notice Makes a wallet's lookup answer with another instance, as a faulty registry might; 0 makes it unknown.
    function setInstanceOfWallet(address wallet, uint256 instanceId) external onlyOwner {
        _instanceOf[wallet] = instanceId;
    }

    // --- the views ---

    /// @inheritdoc INovaAppRegistry
    function getApp(uint256 appId) external view returns (App memory) {
        return _apps[appId];
    }

    /// @inheritdoc INovaAppRegistry
    function getVersion(uint256 appId, uint256 versionId) external view returns (Version memory) {
        return _versions[appId][versionId];
    }

    /// @inheritdoc INovaAppRegistry
    function getInstance(uint256 instanceId) external view returns (Instance memory) {
        return _instances[instanceId];
    }

    /// @inheritdoc INovaAppRegistry
    function getInstanceByWallet(address wallet) external view returns (Instance memory) {
        uint256 instanceId = _instanceOf[wallet];
        if (instanceId == 0 && REVERTS_UNKNOWN) revert UnknownInstance();
        return _instances[instanceId];
    }

    /// @inheritdoc INovaAppRegistry
    function getActiveInstances(uint256 appId) external view returns (address[] memory) {
        return _activeWallets[appId];
    }

    /// @inheritdoc INovaAppRegistry
    function getInstancesForVersion(uint256 appId, uint256 versionId) external view returns (uint256[] memory) {
        return _instancesOf[appId][versionId];
    }

    // --- inside ---

    function _activate(Instance storage instance) private {
        address wallet = instance.teeWalletAddress;
        address[] storage active = _activeWallets[instance.appId];
        active.push(wallet);
        _activePlaceOf[wallet] = active.length;
        address dapp = _apps[instance.appId].dappContract;
        if (dapp == address(0)) return;
        INovaAppInterface(dapp).addOperator(wallet, instance.appId, instance.versionId, instance.id);
    }

    function _deactivate(Instance storage instance) private {
        address wallet = instance.teeWalletAddress;
        address[] storage active = _activeWallets[instance.appId];
        uint256 place = _activePlaceOf[wallet];
        address last = active[active.length - 1];
        active[place - 1] = last;
        _activePlaceOf[last] = place;
        active.pop();
        delete _activePlaceOf[wallet];
        address dapp = _apps[instance.appId].dappContract;
        if (dapp == address(0)) return;
        INovaAppInterface(dapp).removeOperator(wallet, instance.appId, instance.versionId, instance.id);
    }

    function _existingApp(uint256 appId) private view returns (App storage app) {
        app = _apps[appId];
        if (app.id == 0) revert UnknownApp();
    }

    function _existingVersion(uint256 appId, uint256 versionId) private view returns (Version storage version) {
        version = _versions[appId][versionId];
        if (version.id == 0) revert UnknownVersion();
    }

    function _existingInstance(uint256 instanceId) private view returns (Instance storage instance) {
        instance = _instances[instanceId];
        if (instance.id == 0) revert UnknownInstance();
    }
}
