//! The gRPC surface: arbitrary requests to a live driver, on an XFS on a tmpfs, in mounts of its own. Each input is a
//! short life: some calls, then everything is taken back through the driver, and nothing may be left. As root.

mod requests;
mod room;

use std::sync::OnceLock;

use arbitrary::Unstructured;
use holdfast::csi::proto as p;
use prost::Message;
use tonic::Code;

use self::requests::Known;
use self::room::Room;

static ROOM: OnceLock<Room> = OnceLock::new();
/// Calls of one input.
const MOST_CALLS: usize = 12;

/// Sends what the bytes say, and looks what is left.
pub fn run(data: &[u8]) {
    let room = ROOM.get_or_init(Room::new);
    let mut known = Known::new(room);
    let _ = called(room, &mut known, &mut Unstructured::new(data));
    taken_back(room, &known);
    room.nothing_is_left();
}

fn called(room: &Room, known: &mut Known, input: &mut Unstructured) -> arbitrary::Result<()> {
    // Inputs are made of older ones, and of what the target compares: a mark in a name is no secret that was repeated.
    let is_told = input
        .peek_bytes(input.len())
        .is_some_and(|data| data.windows(requests::SECRET.len()).any(|part| part == requests::SECRET.as_bytes()));
    for _ in 0..MOST_CALLS {
        if input.is_empty() {
            break;
        }
        let (path, mut message) = requests::one(known, input)?;
        if input.ratio(1, 16)? && !message.is_empty() {
            let at = input.choose_index(message.len())?;
            message[at] = input.arbitrary()?;
            if !requests::stays(known, path, &message) {
                continue;
            }
        }
        match room.call(path, message) {
            Ok(answer) => known.learn(path, &answer),
            Err(status) => judged(path, &status, is_told),
        }
    }
    Ok(())
}

/// What may be answered when something is refused.
fn judged(path: &str, status: &tonic::Status, is_told: bool) {
    let (code, said) = (status.code(), status.message());
    assert!(!said.is_empty() && said.len() < 3000 && !said.contains("panicked"), "{path}: {status:?}");
    assert!(!said.contains("failed unexpectedly inside the driver"), "{path}: {status:?}");
    assert!(!matches!(code, Code::Unknown | Code::Cancelled | Code::DataLoss), "{path}: {status:?}");
    if path.contains("/Create") {
        assert_ne!(code, Code::Internal, "{path}: {status:?}");
    }
    assert!(is_told || !said.contains(requests::SECRET), "{path} repeats a secret: {status:?}");
}

/// Takes everything back as the orchestrator would.
fn taken_back(room: &Room, known: &Known) {
    let must = |path: &str, message: Vec<u8>| {
        for _ in 0..500 {
            match room.call(path, message.clone()) {
                Ok(answer) => return answer,
                Err(status) if matches!(status.code(), Code::Aborted | Code::DeadlineExceeded) => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Err(status) => panic!("{path} does not take back: {status:?}"),
            }
        }
        panic!("{path} is under way for ever")
    };
    let volumes = must(requests::LIST_VOLUMES, Vec::new());
    let volumes = p::ListVolumesResponse::decode(volumes.as_slice()).expect("a list");
    let ids: Vec<_> = volumes.entries.into_iter().filter_map(|entry| entry.volume).map(|v| v.volume_id).collect();
    for volume_id in &ids {
        for target_path in known.targets() {
            let request = p::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path };
            // A path another volume is at is refused: that one takes it back.
            let _ = room.call("/csi.v1.Node/NodeUnpublishVolume", request.encode_to_vec());
        }
    }
    for volume_id in &ids {
        for staging_target_path in known.stagings() {
            let request = p::NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path };
            let _ = room.call("/csi.v1.Node/NodeUnstageVolume", request.encode_to_vec());
        }
        let request = p::ControllerUnpublishVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
        must("/csi.v1.Controller/ControllerUnpublishVolume", request.encode_to_vec());
    }
    let snapshots = must(requests::LIST_SNAPSHOTS, Vec::new());
    let snapshots = p::ListSnapshotsResponse::decode(snapshots.as_slice()).expect("a list");
    for volume_id in ids {
        let request = p::DeleteVolumeRequest { volume_id, ..Default::default() };
        must("/csi.v1.Controller/DeleteVolume", request.encode_to_vec());
    }
    for snapshot in snapshots.entries.into_iter().filter_map(|entry| entry.snapshot) {
        let request = p::DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
        must("/csi.v1.Controller/DeleteSnapshot", request.encode_to_vec());
    }
}
