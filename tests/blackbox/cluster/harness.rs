//! A cluster for a test: start, calls, and cleanup.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::csi::proto::identity_client::IdentityClient;
use holdfast::csi::proto::node_client::NodeClient;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::harness::api_server::ApiServer;
use crate::harness::{
    Daemon, Finished, PoolFs, Release, Scratch, Use, await_that, capability, create_request, driver_binary, free_port,
    run, try_run, try_run_unchecked,
};

/// The time between heartbeats in tests.
const HEARTBEAT: &str = "300ms";
/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The service account of nodes, as the API server names it.
pub(super) const NODE_ACCOUNT: &str = "system:serviceaccount:holdfast:holdfast-node";
pub(super) const NODE_KEY: &str = "csi.holdfast.storage/node";

/// One daemon, running or not.
pub(super) struct Machine {
    pub(super) name: String,
    daemon: Option<Daemon>,
    /// The release that it is from the next start on.
    pub(super) release: Release,
    /// The CSI socket.
    pub(super) socket: PathBuf,
    /// The port for other daemons.
    pub(super) address: String,
    pub(super) directory: PathBuf,
    pub(super) extra: Vec<String>,
    /// Where a controller issues certificates, with [`Wire::Auto`].
    pub(super) enrol: String,
    variables: Vec<(String, String)>,
}

/// How daemons identify each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Plain,
    Tls,
    /// The controllers issue them.
    Auto,
}

/// Nodes, controllers, and the filesystems below.
pub(super) struct Cluster {
    runtime: Runtime,
    pub(super) nodes: BTreeMap<String, Machine>,
    pub(super) controllers: Vec<Machine>,
    pub(super) wire: Wire,
    /// The API server, with [`Wire::Auto`].
    pub(super) api: Option<ApiServer>,
    contexts: RefCell<HashMap<String, HashMap<String, String>>>,
    scratches: BTreeMap<String, Scratch>,
}

/// A volume as the CO remembers it.
#[derive(Clone, Debug)]
pub(super) struct Vol {
    pub(super) id: String,
    pub(super) kind: Use,
    pub(super) size: i64,
    pub(super) node: String,
}

fn machine(name: &str, directory: &Path) -> Machine {
    fs::create_dir_all(directory.join("state")).unwrap();
    Machine {
        name: name.to_owned(),
        daemon: None,
        release: Release::This,
        socket: directory.join("csi.sock"),
        address: format!("127.0.0.1:{}", free_port()),
        directory: directory.to_owned(),
        extra: Vec::new(),
        enrol: format!("127.0.0.1:{}", free_port()),
        variables: Vec::new(),
    }
}

/// A topology requirement of one node.
pub(super) fn on(node: &str) -> p::TopologyRequirement {
    let topology = p::Topology { segments: HashMap::from([(NODE_KEY.to_owned(), node.to_owned())]) };
    p::TopologyRequirement { requisite: vec![topology.clone()], preferred: vec![topology] }
}

impl Machine {
    fn log(&self) -> PathBuf {
        self.release.log_in(&self.directory, "log")
    }

    pub(super) fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The process.
    pub(super) fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("it runs").pid()
    }

    pub(super) fn kill9(&mut self) {
        self.daemon.take().expect("it runs").kill9();
    }

    /// A stopped daemon: it exists and does nothing.
    pub(super) fn freeze(&self) {
        self.daemon.as_ref().expect("it runs").signal(nix::sys::signal::Signal::SIGSTOP);
    }

    pub(super) fn thaw(&self) {
        self.daemon.as_ref().expect("it runs").signal(nix::sys::signal::Signal::SIGCONT);
    }

    pub(super) fn terminate(&mut self) -> i32 {
        self.daemon.take().expect("it runs").terminate()
    }

    fn start(&mut self, arguments: Vec<String>) {
        assert!(self.daemon.is_none(), "{} runs already", self.name);
        let arguments: Vec<_> = arguments.into_iter().chain(self.extra.iter().cloned()).collect();
        self.daemon = Some(Daemon::start_with(self.release, &arguments, &self.variables, &self.log()));
    }
}

impl Cluster {
    /// Running, ready, and every node is registered with every controller.
    pub(super) fn new(nodes: &[&str], controllers: usize) -> Self {
        Self::wired(nodes, controllers, Wire::Plain)
    }

    /// As [`Cluster::new`], with or without certificates.
    pub(super) fn wired(nodes: &[&str], controllers: usize, wire: Wire) -> Self {
        Self::stopped(nodes, controllers, wire).started()
    }

    /// Starts all daemons of a stopped cluster; as [`Cluster::new`].
    pub(super) fn started(mut self) -> Self {
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        let controllers = self.controllers.len();
        for index in 0..controllers {
            self.start_controller(index);
        }
        for name in &names {
            if self.wire == Wire::Auto {
                self.mount_ca(name);
            }
            self.start_node(name);
        }
        for index in 0..controllers {
            self.ready(index);
            for name in &names {
                self.heard(index, name);
            }
        }
        self
    }

    /// Everything except the daemons.
    pub(super) fn stopped(nodes: &[&str], controllers: usize, wire: Wire) -> Self {
        // All filesystems first: each creates a mount namespace, and all daemons run in the last one.
        let scratches: BTreeMap<String, Scratch> =
            nodes.iter().map(|name| ((*name).to_owned(), Scratch::new(PoolFs::Xfs, 2 << 30))).collect();
        let mut machines = BTreeMap::new();
        for (name, scratch) in &scratches {
            fs::create_dir(scratch.root().join("pool")).unwrap();
            machines.insert(name.clone(), machine(name, &scratch.path().join("machine")));
        }
        let home = scratches.values().next().expect("at least one node").path().to_owned();
        let controllers: Vec<_> = (0..controllers)
            .map(|index| machine(&format!("controller-{index}"), &home.join(format!("controller-{index}"))))
            .collect();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let api = (wire == Wire::Auto).then(ApiServer::start);
        let contexts = RefCell::default();
        let mut cluster = Self { runtime, nodes: machines, controllers, wire, api, contexts, scratches };
        if let Some(api) = &cluster.api {
            for controller in &mut cluster.controllers {
                let kubeconfig = controller.directory.join("kubeconfig");
                fs::write(&kubeconfig, api.kubeconfig()).unwrap();
                controller.variables.push(("KUBECONFIG".to_owned(), kubeconfig.display().to_string()));
            }
            for name in nodes {
                let token = format!("token-of-{name}");
                api.know(&token, NODE_ACCOUNT, &["holdfast"], Some(name));
                fs::write(cluster.nodes[*name].directory.join("token"), token).unwrap();
            }
        }
        if wire == Wire::Tls {
            for name in nodes {
                cluster.issue(&format!("node:{name}"), &cluster.nodes[*name].directory.join("tls"));
            }
            for controller in &cluster.controllers {
                cluster.issue("controller", &controller.directory.join("tls"));
            }
        }
        cluster
    }

    /// What kubelet does: the published CA certificate becomes a file of the node.
    pub(super) fn mount_ca(&self, name: &str) {
        let file = self.nodes[name].directory.join("published.crt");
        await_that("the CA is published", Duration::from_secs(30), || {
            let map = self.api.as_ref().expect("an API server").object("configmaps/holdfast/holdfast-ca");
            map.is_some_and(|map| fs::write(&file, map["data"]["ca.crt"].as_str().unwrap()).is_ok())
        });
    }

    /// Where the cluster's CA is.
    pub(super) fn authority(&self) -> PathBuf {
        self.scratches.values().next().expect("at least one node").path().join("ca")
    }

    /// A certificate of the cluster's CA.
    pub(super) fn issue(&self, role: &str, out: &Path) {
        self.issue_by(&self.authority(), role, out);
    }

    /// A certificate of any CA.
    pub(super) fn issue_by(&self, authority: &Path, role: &str, out: &Path) {
        let (authority, out) = (authority.to_str().unwrap(), out.to_str().unwrap());
        run(driver_binary(), &["ca", "issue", "--dir", authority, "--role", role, "--out", out]);
    }

    fn wire_arguments(&self, machine: &Machine) -> Vec<String> {
        let mut arguments =
            vec!["--listen".to_owned(), machine.address.clone(), "--heartbeat".to_owned(), HEARTBEAT.to_owned()];
        match self.wire {
            Wire::Plain => arguments.push("--insecure-plain-text".to_owned()),
            Wire::Auto => arguments.push("--tls-auto".to_owned()),
            Wire::Tls => {
                arguments.extend(["--tls".to_owned(), machine.directory.join("tls").display().to_string()]);
            }
        }
        arguments.extend([
            "--endpoint".to_owned(),
            format!("unix://{}", machine.socket.display()),
            "--log-level".to_owned(),
            "debug".to_owned(),
        ]);
        arguments
    }

    /// Starts a controller.
    pub(super) fn start_controller(&mut self, index: usize) {
        let mut arguments = vec!["controller".to_owned()];
        arguments.extend(self.wire_arguments(&self.controllers[index]));
        if self.wire == Wire::Auto {
            let enrol = self.controllers[index].enrol.as_str();
            let more = ["--tls-authority", "holdfast/holdfast-ca", "--enrol-listen", enrol];
            arguments.extend(more.into_iter().chain(["--enrol-account", "holdfast/holdfast-node"]).map(str::to_owned));
        }
        self.controllers[index].start(arguments);
    }

    /// The pool of a node, at its original place.
    pub(super) fn pool_of(&self, name: &str) -> PathBuf {
        self.scratches[name].root().join("pool")
    }

    /// Starts a node on its own pool.
    pub(super) fn start_node(&mut self, name: &str) {
        let pool = self.pool_of(name);
        self.start_node_on(name, Some(&pool));
    }

    /// Starts a node on any pool, or none.
    pub(super) fn start_node_on(&mut self, name: &str, pool: Option<&Path>) {
        let controllers: Vec<_> = self.controllers.iter().map(|controller| controller.address.clone()).collect();
        let machine = &self.nodes[name];
        let mut arguments = vec!["node".to_owned(), "--node-name".to_owned(), name.to_owned()];
        arguments.extend(["--controllers".to_owned(), controllers.join(",")]);
        arguments.extend(["--state".to_owned(), machine.directory.join("state").display().to_string()]);
        if let Some(pool) = pool {
            arguments.extend(["--pool".to_owned(), format!("test=file:{}", pool.display())]);
        }
        arguments.extend(self.wire_arguments(machine));
        if self.wire == Wire::Auto {
            let enrol: Vec<_> = self.controllers.iter().map(|controller| controller.enrol.clone()).collect();
            let file = |name: &str| machine.directory.join(name).display().to_string();
            arguments.extend(["--tls-ca".to_owned(), file("published.crt"), "--tls-token".to_owned(), file("token")]);
            arguments.extend(["--enrol".to_owned(), enrol.join(",")]);
        }
        self.nodes.get_mut(name).expect("a node of the cluster").start(arguments);
    }

    /// A channel to a socket.
    pub(super) fn channel_of(&self, socket: &Path) -> Channel {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        self.runtime.block_on(async { endpoint.connect_lazy() })
    }

    /// The Controller service of a controller.
    pub(super) fn controller(&self, index: usize) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel_of(&self.controllers[index].socket))
    }

    /// The Node service of a node.
    pub(super) fn node(&self, name: &str) -> NodeClient<Channel> {
        NodeClient::new(self.channel_of(&self.nodes[name].socket))
    }

    /// Waits for a call.
    pub(super) fn call<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, call).await.expect("no answer") });
        answer.map(Response::into_inner)
    }

    /// Runs a future to its end.
    pub(super) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Runs a call in the background.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(call)
    }

    /// Waits for a background call.
    pub(super) fn join<T>(&self, task: tokio::task::JoinHandle<T>) -> T {
        self.runtime.block_on(task).unwrap()
    }

    /// Waits until a controller reports that it is ready.
    pub(super) fn ready(&mut self, index: usize) {
        let mut client = IdentityClient::new(self.channel_of(&self.controllers[index].socket));
        await_that("the controller is ready", Duration::from_secs(30), || {
            let answer = self.call(client.probe(p::ProbeRequest {}));
            answer.is_ok_and(|answer| answer.ready != Some(false))
        });
    }

    /// The free capacity of a node, as a controller reports it.
    pub(super) fn capacity(&self, index: usize, node: &str) -> i64 {
        let topology = on(node).preferred.into_iter().next();
        let request = p::GetCapacityRequest { accessible_topology: topology, ..Default::default() };
        self.call(self.controller(index).get_capacity(request)).map_or(0, |answer| answer.available_capacity)
    }

    /// Waits until a node is registered with a controller.
    pub(super) fn heard(&self, index: usize, node: &str) {
        await_that("the node is heard", Duration::from_secs(30), || {
            let log = self.controllers[index].said();
            let registered = |line: &str| line.contains("node registered") || line.contains("node heard");
            log.lines().any(|line| registered(line) && line.contains(node))
        });
    }

    /// Waits until a controller answers for a volume as expected: OK or this code.
    pub(super) fn until(&self, index: usize, vol: &Vol, wanted: Code) {
        await_that("the controller says so of the volume", Duration::from_secs(30), || {
            let request = p::ControllerGetVolumeRequest { volume_id: vol.id.clone() };
            let code = self
                .call(self.controller(index).controller_get_volume(request))
                .map_or_else(|s| s.code(), |_| Code::Ok);
            code == wanted
        });
    }

    /// One attempt to create a volume on a node, through a controller.
    pub(super) fn try_create(&self, index: usize, name: &str, kind: Use, node: &str) -> Result<Vol, Status> {
        let request = p::CreateVolumeRequest {
            accessibility_requirements: Some(on(node)),
            ..create_request(name, kind, kind.size())
        };
        self.create_from(index, kind, request)
    }

    /// One attempt to create a volume.
    pub(super) fn create_from(&self, index: usize, kind: Use, request: p::CreateVolumeRequest) -> Result<Vol, Status> {
        let volume = self.call(self.controller(index).create_volume(request))?.volume.unwrap();
        let node = volume.accessible_topology[0].segments[NODE_KEY].clone();
        Ok(Vol { id: volume.volume_id, kind, size: volume.capacity_bytes, node })
    }

    /// A volume on a node.
    pub(super) fn create(&self, name: &str, kind: Use, node: &str) -> Vol {
        self.try_create(0, name, kind, node).unwrap()
    }

    /// ControllerPublish.
    pub(super) fn publish(&self, index: usize, vol: &Vol, node: &str) -> Result<(), Status> {
        let request = p::ControllerPublishVolumeRequest {
            volume_id: vol.id.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(capability(vol.kind)),
            ..Default::default()
        };
        let answer = self.call(self.controller(index).controller_publish_volume(request))?;
        self.contexts.borrow_mut().insert(vol.id.clone(), answer.publish_context);
        Ok(())
    }

    /// ControllerUnpublish.
    pub(super) fn unpublish(&self, index: usize, vol: &Vol, node: &str) -> Result<(), Status> {
        let request = p::ControllerUnpublishVolumeRequest {
            volume_id: vol.id.clone(),
            node_id: node.to_owned(),
            ..Default::default()
        };
        self.call(self.controller(index).controller_unpublish_volume(request)).map(drop)
    }

    /// Where a volume is staged on its node.
    pub(super) fn staging(&self, vol: &Vol) -> PathBuf {
        self.scratches[&vol.node].path().join("stage").join(&vol.id)
    }

    /// NodeStage on the volume's node: returns where it is mounted.
    pub(super) fn stage(&self, vol: &Vol) -> Result<PathBuf, Status> {
        let staging = self.staging(vol);
        fs::create_dir_all(&staging).unwrap();
        let request = p::NodeStageVolumeRequest {
            volume_id: vol.id.clone(),
            publish_context: self.contexts.borrow().get(&vol.id).cloned().unwrap_or_default(),
            staging_target_path: staging.to_str().unwrap().into(),
            volume_capability: Some(capability(vol.kind)),
            ..Default::default()
        };
        self.call(self.node(&vol.node).node_stage_volume(request))?;
        Ok(staging)
    }

    /// NodeUnstage on the volume's node.
    pub(super) fn unstage(&self, vol: &Vol) -> Result<(), Status> {
        let request = p::NodeUnstageVolumeRequest {
            volume_id: vol.id.clone(),
            staging_target_path: self.staging(vol).to_str().unwrap().into(),
        };
        self.call(self.node(&vol.node).node_unstage_volume(request)).map(drop)
    }

    /// DeleteVolume.
    pub(super) fn delete(&self, index: usize, vol: &Vol) -> Result<(), Status> {
        let request = p::DeleteVolumeRequest { volume_id: vol.id.clone(), ..Default::default() };
        self.call(self.controller(index).delete_volume(request)).map(drop)
    }

    /// Ids of all volumes, or why there is no list.
    pub(super) fn list(&self, index: usize) -> Result<Vec<String>, Status> {
        let answer = self.call(self.controller(index).list_volumes(p::ListVolumesRequest::default()))?;
        Ok(answer.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect())
    }

    /// An operator's command to a controller.
    pub(super) fn command(&self, index: usize, arguments: &[&str]) -> Finished {
        try_run(driver_binary(), &self.command_line(index, arguments))
    }

    /// The same with the command of any release; the cluster may have daemons of any, so the output is not checked.
    pub(super) fn command_of(&self, release: Release, index: usize, arguments: &[&str]) -> Finished {
        try_run_unchecked(&release.binary(), &self.command_line(index, arguments), &[])
    }

    fn command_line(&self, index: usize, arguments: &[&str]) -> Vec<String> {
        let controller = &self.controllers[index];
        let address = match self.wire {
            Wire::Plain | Wire::Tls => controller.address.clone(),
            // No operator has a certificate of these controllers.
            Wire::Auto => format!("unix://{}", controller.socket.display()),
        };
        let mut all: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        all.extend(["--controller".to_owned(), address]);
        match self.wire {
            Wire::Plain => all.push("--insecure-plain-text".to_owned()),
            Wire::Auto => {}
            Wire::Tls => all.extend(["--tls".to_owned(), controller.directory.join("tls").display().to_string()]),
        }
        all
    }

    /// The id of a node's pool.
    pub(super) fn pool_id(&self, name: &str) -> String {
        let text = fs::read(self.pool_of(name).join("pool.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Everything ends without an error, and nothing is left (the scratch filesystems check that).
    pub(super) fn finish(mut self) {
        for machine in self.nodes.values_mut().chain(&mut self.controllers) {
            if machine.daemon.is_some() {
                assert_eq!(machine.terminate(), 0, "{}: {}", machine.name, machine.said());
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for machine in self.nodes.values_mut().chain(&mut self.controllers) {
            if std::thread::panicking() {
                let log = machine.said();
                let lines: Vec<_> = log.lines().collect();
                eprintln!(
                    "-- last words of {} --\n{}",
                    machine.name,
                    lines[lines.len().saturating_sub(25)..].join("\n")
                );
            }
            machine.daemon = None;
        }
    }
}
