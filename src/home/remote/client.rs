//! [`RemoteHome`]: a client of the home node on another machine.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::proto::home_client::HomeClient;
use super::proto::{self as pb};
use super::{decode, encode};
use crate::home::{
    Capacity, CapacityQuery, Changed, Client, ConnectionState, CreateSnapshot, CreateVolume, Created, Expanded,
    Finding, Formatting, GrantRequest, Granted, Home, OpenVolume, Page, PoolReport, Renaming, Snapshot, SnapshotFilter,
    Volume,
};
use crate::os::{Deadline, DevNum, Dhchap};
use crate::pool::ActiveDevice;
use crate::telemetry::HomeMetrics;
use crate::types::{
    Bytes, CapacityRange, Error, Failure, FsType, Kind, NodeId, ObjectUuid, PoolId, RequestedMode, Result, SnapshotId,
    SubsystemNqn, VolumeId,
};
use crate::wire;

/// How much earlier than its own caller's deadline a call gives up: the answer must still reach the caller.
const EARLIER: Duration = Duration::from_secs(2);
/// The timeout of a call without a deadline.
const UNHURRIED: Duration = Duration::from_secs(300);
/// Concurrent calls to one home node: a slow one must not use up the threads of all others.
const MOST_CALLS: usize = 64;
/// The largest reply, in bytes: a page of a list has some hundred kilobytes.
const MOST_REPLY: usize = 8 << 20;
/// The size of a page of volumes or snapshots, and the most entries of one home node. A reply is in memory several
/// times.
const PAGE: usize = 1000;
const MOST_ENTRIES: usize = 1_000_000;
/// The most findings that are accepted from one home node.
const MOST_FINDINGS: usize = 1000;

/// The home node on another machine. Its methods block, on threads that may block (docs/adr/0001).
pub struct RemoteHome {
    node: NodeId,
    endpoint: String,
    client: HomeClient<Channel>,
    runtime: Handle,
    calls: AtomicUsize,
    metrics: HomeMetrics,
}

impl fmt::Debug for RemoteHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteHome").field("node", &self.node).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// One running call to a home node.
struct Call<'a>(&'a RemoteHome);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
        self.0.metrics.call_ended(self.0.node.as_str());
    }
}

impl RemoteHome {
    /// The home node `node`, reached through `channel`, which connects on demand and reconnects after a failure.
    /// `endpoint` is for messages. `runtime` drives the sockets of the calls.
    #[must_use]
    pub fn new(node: NodeId, endpoint: impl Into<String>, channel: Channel, runtime: Handle) -> Self {
        let client = HomeClient::new(channel).max_decoding_message_size(MOST_REPLY);
        let (calls, metrics) = (AtomicUsize::new(0), HomeMetrics::default());
        Self { node, endpoint: endpoint.into(), client, runtime, calls, metrics }
    }

    /// The same, with metrics for its calls.
    #[must_use]
    pub fn counted(self, metrics: HomeMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// One call, answered before this thread's own caller stops waiting.
    fn ask<Q, R, F>(
        &self,
        what: &str,
        message: Q,
        call: impl FnOnce(HomeClient<Channel>, Request<Q>) -> F,
    ) -> Result<R, Failure>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.metrics.call_began(self.node.as_str());
        let call_slot = Call(self);
        if self.calls.fetch_add(1, Ordering::SeqCst) >= MOST_CALLS {
            self.metrics.crowded(self.node.as_str());
            let sentence = format!("{what}: {MOST_CALLS} calls to node {} are running already; retry later", self.node);
            return Err(Failure::Clean(Error::new(Kind::Unavailable, sentence)));
        }
        let time = time_for(Deadline::current());
        let mut request = Request::new(message);
        request.set_timeout(time);
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(time, call(self.client.clone(), request)).await });
        drop(call_slot);
        match answer {
            Ok(answer) => answer
                .map(Response::into_inner)
                .map_err(|status| wire::failure(&self.node, &self.endpoint, what, &status)),
            Err(_) => Err(wire::overdue(&self.node, what)),
        }
    }

    /// As [`RemoteHome::ask`], where nothing can be left behind.
    fn ask_plainly<Q, R, F>(
        &self,
        what: &str,
        message: Q,
        call: impl FnOnce(HomeClient<Channel>, Request<Q>) -> F,
    ) -> Result<R>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.ask(what, message, call).map_err(Failure::into_error)
    }

    /// A list of at most `limit` entries (0: all), requested in pages, so that no reply is large.
    fn in_pages<T, K: Ord + Copy>(
        &self,
        what: &str,
        after: Option<K>,
        limit: usize,
        ask: impl Fn(Option<K>, usize) -> Result<Page<T, K>>,
    ) -> Result<Page<T, K>> {
        let wanted = if limit == 0 { MOST_ENTRIES } else { limit };
        let (mut entries, mut from) = (Vec::new(), after);
        loop {
            let page_size = PAGE.min(wanted - entries.len());
            let page = ask(from, page_size)?;
            let wrong = |why: &str| {
                let sentence = format!("{what}: the answer of node {} is rejected: {why}", self.node);
                Err(Error::new(Kind::Unavailable, sentence))
            };
            if page.entries.len() > page_size {
                return wrong("it has more entries than were requested");
            }
            entries.extend(page.entries);
            let Some(next) = page.next else { return Ok(Page { entries, next: None }) };
            if from.is_some_and(|from| next <= from) {
                return wrong("its list does not continue after the last page");
            }
            if entries.len() >= wanted {
                if limit == 0 {
                    return wrong("its list has no end");
                }
                return Ok(Page { entries, next: Some(next) });
            }
            from = Some(next);
        }
    }

    /// A reply with values unknown to this release, after the home node did what was requested.
    fn understood<T>(&self, what: &str, reply: Result<T>) -> Result<T, Failure> {
        reply.map_err(|error| {
            let sentence = format!("{what}: the answer of node {} cannot be read", self.node);
            Failure::Dirty(error.with_kind(Kind::Unavailable).context(sentence))
        })
    }

    fn understood_plainly<T>(&self, what: &str, reply: Result<T>) -> Result<T> {
        self.understood(what, reply).map_err(Failure::into_error)
    }
}

/// The timeout of a call whose caller waits until `deadline`.
fn time_for(deadline: Option<Deadline>) -> Duration {
    let Some(left) = deadline.map(Deadline::left) else { return UNHURRIED };
    // Half of a short time: an early answer does not help if the home node had no chance to finish.
    left.saturating_sub(EARLIER).max(left / 2)
}

impl Home for RemoteHome {
    fn node(&self) -> &NodeId {
        &self.node
    }

    fn create_volume(&self, request: &CreateVolume) -> Result<Created<Volume>, Failure> {
        const WHAT: &str = "CreateVolume";
        let message = encode::create_volume(request);
        let reply = self.ask(WHAT, message, |mut home, request| async move { home.create_volume(request).await })?;
        self.understood(WHAT, decode::volume(reply.volume).and_then(|volume| decode::created(reply.changed, volume)))
    }

    fn delete_volume(&self, id: &VolumeId) -> Result<Changed> {
        const WHAT: &str = "DeleteVolume";
        let message = pb::DeleteVolumeRequest { id: id.to_string() };
        let reply =
            self.ask_plainly(WHAT, message, |mut home, request| async move { home.delete_volume(request).await })?;
        self.understood_plainly(WHAT, decode::changed(reply.changed))
    }

    fn volume(&self, id: &VolumeId) -> Result<Volume> {
        const WHAT: &str = "GetVolume";
        let message = pb::GetVolumeRequest { id: id.to_string() };
        let reply =
            self.ask_plainly(WHAT, message, |mut home, request| async move { home.get_volume(request).await })?;
        self.understood_plainly(WHAT, decode::volume(Some(reply)))
    }

    fn find_volume(&self, uuid: ObjectUuid) -> Result<Vec<VolumeId>> {
        const WHAT: &str = "FindVolume";
        let message = pb::FindVolumeRequest { uuid: uuid.to_string() };
        let reply =
            self.ask_plainly(WHAT, message, |mut home, request| async move { home.find_volume(request).await })?;
        self.understood_plainly(WHAT, reply.ids.iter().map(|id| decode::text(id)).collect())
    }

    fn volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume, VolumeId>> {
        const WHAT: &str = "ListVolumes";
        self.in_pages(WHAT, after, limit, |after, limit| {
            let message = pb::ListVolumesRequest { after: encode::after_volume(after), limit: count(limit) };
            let reply =
                self.ask_plainly(WHAT, message, |mut home, request| async move { home.list_volumes(request).await })?;
            let entries = reply.volumes.into_iter().map(|volume| decode::volume(Some(volume))).collect::<Result<_>>();
            let page = entries.and_then(|entries| Ok(Page { entries, next: decode::optional(&reply.next)? }));
            self.understood_plainly(WHAT, page)
        })
    }

    fn grant(&self, id: &VolumeId, request: &GrantRequest) -> Result<Granted> {
        const WHAT: &str = "Grant";
        let ask = |request: &GrantRequest| {
            let message = encode::grant(id, request);
            let reply =
                self.ask_plainly(WHAT, message, |mut home, request| async move { home.grant(request).await })?;
            self.understood_plainly(WHAT, decode::granted(&reply))
        };
        match ask(request) {
            // Release 0.1.0 rejects a request without a filesystem type.
            Err(error) if error.kind() == Kind::Unsupported && request.mode == RequestedMode::Mount(None) => {
                let mode = self.volume(id)?.mode_of(request.mode)?;
                ask(&GrantRequest { mode: mode.into(), ..request.clone() })
            }
            answer => answer,
        }
    }

    fn revoke(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<Changed> {
        const WHAT: &str = "Revoke";
        let node = node.map_or_else(String::new, ToString::to_string);
        let message = pb::RevokeRequest { id: id.to_string(), node };
        let reply = self.ask_plainly(WHAT, message, |mut home, request| async move { home.revoke(request).await })?;
        self.understood_plainly(WHAT, decode::changed(reply.changed))
    }

    fn open_for(&self, id: &VolumeId, node: &NodeId, client: &Client) -> Result<OpenVolume> {
        const WHAT: &str = "Open";
        let message = pb::OpenRequest {
            id: id.to_string(),
            node: node.to_string(),
            connection: client.connection.map(|one| one.export.to_string()).unwrap_or_default(),
            authenticates: client.authenticates == Dhchap::Yes,
            waiting: client.connection.and_then(|one| match one.state {
                ConnectionState::Live => None,
                ConnectionState::Waiting(id) => {
                    let same_name = client.renaming == Renaming::Refused;
                    Some(pb::open_request::Waiting { controller: id.map(u32::from).unwrap_or_default(), same_name })
                }
            }),
        };
        let reply = self.ask_plainly(WHAT, message, |mut home, request| async move { home.open(request).await })?;
        let opened = self.understood_plainly(WHAT, decode::opened(reply))?;
        Ok(OpenVolume { connection: client.connection, ..opened })
    }

    fn close(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        let message = pb::CloseRequest { id: id.to_string(), node: node.to_string() };
        self.ask_plainly("Close", message, |mut home, request| async move { home.close(request).await }).map(drop)
    }

    fn device_of(&self, id: &VolumeId) -> Result<Option<ActiveDevice>> {
        Err(Error::new(
            Kind::Unsupported,
            format!("the device of volume {id} is on node {}; only that node can query it", self.node),
        ))
    }

    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>> {
        Err(Error::new(
            Kind::Unsupported,
            format!("device {device} is on this machine, and node {} is another machine", self.node),
        ))
    }

    fn was_given(&self, id: &VolumeId, _: DevNum) -> Result<bool> {
        self.device_of(id).map(|_| false)
    }

    fn give_view(&self, id: &VolumeId, _: &NodeId, _: &ActiveDevice) -> Result<()> {
        self.device_of(id).map(drop)
    }

    fn exports(&self, node: &NodeId, pool: PoolId) -> Result<Vec<SubsystemNqn>> {
        const WHAT: &str = "ListExports";
        let message = pb::ListExportsRequest { node: node.to_string(), pool: pool.to_string() };
        let reply =
            self.ask_plainly(WHAT, message, |mut home, request| async move { home.list_exports(request).await })?;
        self.understood_plainly(WHAT, reply.subsystems.iter().map(|name| name.parse()).collect())
    }

    fn begin_format(&self, id: &VolumeId, node: &NodeId, fs: FsType) -> Result<Formatting> {
        const WHAT: &str = "BeginFormat";
        let fs = encode::fs_type(fs).into();
        let message = pb::BeginFormatRequest { id: id.to_string(), node: node.to_string(), fs };
        let reply =
            self.ask_plainly(WHAT, message, |mut home, request| async move { home.begin_format(request).await })?;
        self.understood_plainly(WHAT, decode::formatting(reply))
    }

    fn end_format(&self, id: &VolumeId, node: &NodeId, fs_uuid: uuid::Uuid) -> Result<()> {
        let message = pb::EndFormatRequest { id: id.to_string(), node: node.to_string(), fs_uuid: fs_uuid.to_string() };
        self.ask_plainly("EndFormat", message, |mut home, request| async move { home.end_format(request).await })
            .map(drop)
    }

    fn use_raw(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        let message = pb::UseRawRequest { id: id.to_string(), node: node.to_string() };
        self.ask_plainly("UseRaw", message, |mut home, request| async move { home.use_raw(request).await }).map(drop)
    }

    fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure> {
        const WHAT: &str = "CreateSnapshot";
        let message = encode::create_snapshot(request);
        let reply = self.ask(WHAT, message, |mut home, request| async move { home.create_snapshot(request).await })?;
        let snapshot = decode::snapshot(reply.snapshot);
        self.understood(WHAT, snapshot.and_then(|snapshot| decode::created(reply.changed, snapshot)))
    }

    fn delete_snapshot(&self, id: &SnapshotId) -> Result<Changed> {
        const WHAT: &str = "DeleteSnapshot";
        let message = pb::DeleteSnapshotRequest { id: id.to_string() };
        let reply =
            self.ask_plainly(WHAT, message, |mut home, request| async move { home.delete_snapshot(request).await })?;
        self.understood_plainly(WHAT, decode::changed(reply.changed))
    }

    fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        const WHAT: &str = "GetSnapshot";
        let message = pb::GetSnapshotRequest { id: id.to_string() };
        let reply =
            self.ask_plainly(WHAT, message, |mut home, request| async move { home.get_snapshot(request).await })?;
        self.understood_plainly(WHAT, decode::snapshot(Some(reply)))
    }

    fn find_snapshot(&self, uuid: ObjectUuid) -> Result<Vec<SnapshotId>> {
        const WHAT: &str = "FindSnapshot";
        let message = pb::FindSnapshotRequest { uuid: uuid.to_string() };
        let reply =
            self.ask_plainly(WHAT, message, |mut home, request| async move { home.find_snapshot(request).await })?;
        self.understood_plainly(WHAT, reply.ids.iter().map(|id| decode::text(id)).collect())
    }

    fn snapshots(
        &self,
        filter: &SnapshotFilter,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<Page<Snapshot, SnapshotId>> {
        const WHAT: &str = "ListSnapshots";
        self.in_pages(WHAT, after, limit, |after, limit| {
            let message = pb::ListSnapshotsRequest {
                source: encode::after_volume(filter.source),
                after: encode::after_snapshot(after),
                limit: count(limit),
            };
            let reply =
                self.ask_plainly(WHAT, message, |mut home, request| async move { home.list_snapshots(request).await })?;
            let entries =
                reply.snapshots.into_iter().map(|snapshot| decode::snapshot(Some(snapshot))).collect::<Result<_>>();
            let page = entries.and_then(|entries| Ok(Page { entries, next: decode::optional(&reply.next)? }));
            self.understood_plainly(WHAT, page)
        })
    }

    fn expand(&self, id: &VolumeId, range: &CapacityRange) -> Result<Expanded> {
        const WHAT: &str = "Expand";
        let message = pb::ExpandRequest { id: id.to_string(), range: Some(encode::range(range)) };
        let reply = self.ask_plainly(WHAT, message, |mut home, request| async move { home.expand(request).await })?;
        self.understood_plainly(WHAT, decode::expanded(&reply))
    }

    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        let message = pb::GetCapacityRequest {
            pool: query.pool.as_ref().map_or_else(String::new, ToString::to_string),
            capabilities: query.capabilities.iter().map(encode::capability).collect(),
            provisioning: query.provisioning.map_or(pb::Provisioning::Unspecified, encode::provisioning).into(),
        };
        let reply = self
            .ask_plainly("GetCapacity", message, |mut home, request| async move { home.get_capacity(request).await })?;
        let bytes = Bytes::new;
        Ok(Capacity {
            available: bytes(reply.available),
            largest: bytes(reply.largest),
            smallest: bytes(reply.smallest),
        })
    }

    fn extents(&self) -> Result<BTreeMap<VolumeId, u64>> {
        const WHAT: &str = "ListExtents";
        let message = pb::ListExtentsRequest {};
        let reply =
            self.ask_plainly(WHAT, message, |mut home, request| async move { home.list_extents(request).await })?;
        let extents = reply.extents.iter().map(|(id, extents)| Ok((decode::text(id)?, *extents))).collect();
        self.understood_plainly(WHAT, extents)
    }

    fn report(&self) -> Result<Vec<PoolReport>> {
        const WHAT: &str = "Report";
        let message = pb::ReportRequest {};
        let reply = self.ask_plainly(WHAT, message, |mut home, request| async move { home.report(request).await })?;
        self.understood_plainly(WHAT, reply.pools.into_iter().map(decode::pool_report).collect())
    }

    fn readmit(&self, pool: PoolId) -> Result<Changed> {
        const WHAT: &str = "Readmit";
        let message = pb::ReadmitRequest { pool: pool.to_string() };
        let reply = self.ask_plainly(WHAT, message, |mut home, request| async move { home.readmit(request).await })?;
        self.understood_plainly(WHAT, decode::changed(reply.changed))
    }

    fn examine(&self) -> Result<Vec<Finding>> {
        let message = pb::ExamineRequest {};
        let reply =
            self.ask_plainly("Examine", message, |mut home, request| async move { home.examine(request).await })?;
        Ok(reply.findings.into_iter().take(MOST_FINDINGS).map(decode::finding).collect())
    }
}

fn count(limit: usize) -> u64 {
    u64::try_from(limit).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_ends_two_seconds_before_its_callers_time_or_has_half_of_a_short_one() {
        let time = |seconds| time_for(Deadline::after(Duration::from_secs(seconds)));
        let about = |time: Duration, seconds: u64| {
            let (low, high) = (Duration::from_secs(seconds) - Duration::from_millis(900), Duration::from_secs(seconds));
            assert!(time > low && time <= high, "{time:?} {seconds}");
        };
        about(time(15), 13);
        about(time(2), 1);
        assert_eq!(time_for(None), UNHURRIED);
    }

    #[test]
    fn a_home_that_does_not_answer_holds_so_many_callers_and_no_more() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // Connections are accepted, and nothing is ever sent on them.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = mute.local_addr().unwrap().to_string();
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        let home = RemoteHome::new("node-a".parse().unwrap(), address, channel, runtime.handle().clone());
        let ask = || Deadline::scope(Deadline::after(Duration::from_secs(6)), || home.extents().unwrap_err());
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..MOST_CALLS).map(|_| scope.spawn(ask)).collect();
            while home.calls.load(Ordering::SeqCst) < MOST_CALLS {
                std::thread::yield_now();
            }
            let refused = ask();
            assert_eq!(refused.kind(), Kind::Unavailable);
            assert!(refused.to_string().contains("64 calls to node node-a"), "{refused}");
            for one in waiting {
                let overdue = one.join().unwrap();
                assert!(!overdue.to_string().contains("64 calls"), "{overdue}");
            }
        });
        // All call slots are free again.
        assert_eq!(home.calls.load(Ordering::SeqCst), 0);
    }
}
