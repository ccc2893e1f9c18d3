//! Exports and connections: one step each, in a process of its own, as after a restart of the driver. The host names the
//! step and its parameters in the environment.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use holdfast::attach::{Attach, NvmeTcp, Wanted};
use holdfast::export::{ControllerIds, Export, Nvmet, Remains, Spec};
use holdfast::home::DeviceAddress;
use holdfast::os::{Deadline, Os};
use holdfast::types::{Bytes, HostNqn, ObjectUuid, Result, SubsystemNqn, VolumeId};
use uuid::Uuid;

use super::number_of;

/// The environment variable with a step: words `name=value`, the first one without a value.
pub(crate) const STEP: &str = "HOLDFAST_STEP";

/// The ports of the home node.
const PORTS: RangeInclusive<u16> = 20_000..=20_099;

struct Step(HashMap<String, String>);

impl Step {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn must(&self, name: &str) -> &str {
        self.get(name).unwrap_or_else(|| panic!("no {name}"))
    }

    fn number(&self, name: &str) -> u128 {
        self.must(name).parse().unwrap()
    }

    fn volume(&self) -> VolumeId {
        let uuid = ObjectUuid::of_volume(self.must("name"));
        format!("hf1_00000000000000ab_{uuid}").parse().unwrap()
    }

    fn subsystem(&self) -> SubsystemNqn {
        SubsystemNqn { volume: self.volume(), nonce: Uuid::from_u128(self.number("nonce")) }
    }

    /// The same on both sides: everything follows from the volume and the nonce.
    fn spec(&self) -> Spec {
        let nonce = self.number("nonce");
        let (host, namespace) =
            (nonce << 64 | 1, self.get("namespace").map_or(nonce << 64 | 2, |n| n.parse().unwrap()));
        let device = PathBuf::from(self.get("device").unwrap_or("/dev/null"));
        Spec {
            subsystem: self.subsystem(),
            namespace: Uuid::from_u128(namespace),
            host: HostNqn::of(Uuid::from_u128(self.get("host").map_or(host, |host| host.parse().unwrap()))),
            key: self.get("key").map(|key| key.parse().unwrap()),
            listen: SocketAddr::new("10.0.0.1".parse().unwrap(), self.must("port").parse().unwrap()),
            number: number_of(&device),
            device,
            controllers: match self.get("controllers") {
                Some("upper") => ControllerIds::Upper,
                _ => ControllerIds::Lower,
            },
        }
    }
}

fn take(step: &str, parameters: &Step) -> Result<String> {
    let os = Os::new();
    let (nvmet, nvme) = (Nvmet::new(os.clone(), PORTS), NvmeTcp::new(os.clone()));
    let device = || number_of(parameters.must("device").as_ref());
    match step {
        "support" => Ok(format!("{:?} {:?}({:?})", nvmet.support()?, nvme.support()?, nvme.dhchap()?)),
        "ensure" => nvmet.ensure(&parameters.spec()).map(|changed| format!("{changed:?}")),
        "fence" => {
            let limit = Duration::from_millis(parameters.get("ms").unwrap_or("60000").parse().unwrap());
            let remains =
                if parameters.get("port").is_some() { (&parameters.spec()).into() } else { Remains::default() };
            let fenced = nvmet.fence(&parameters.subsystem(), &remains, Deadline::after(limit).unwrap());
            fenced.map(|fenced| format!("{fenced:?}"))
        }
        "resized" => nvmet.resized(&parameters.subsystem()).map(|()| String::new()),
        "exports" => nvmet.exports().map(|exports| format!("{exports:#?}")),
        "users" => {
            let exported = nvmet.exported_device(device())?;
            Ok(format!("{exported:?} {:?}", os.device_users(device()).unwrap()))
        }
        "attach" => {
            let wanted = Wanted {
                at: DeviceAddress::NvmeTcp(Box::new(parameters.spec().address())),
                size: Bytes::new(u64::try_from(parameters.number("size")).unwrap()),
                block_size: 4096,
                connection: None,
            };
            let attached = nvme.attach(&parameters.volume(), &wanted)?;
            assert_eq!(nvme.device_of(&parameters.volume())?, Some(attached.device.number()));
            assert_eq!(nvme.volume_of(attached.device.number())?, Some(parameters.volume()));
            Ok(attached.device.path().display().to_string())
        }
        // The connection is lost, and the home node has opened the export again.
        "rejoin" => {
            let wanted = Wanted {
                at: DeviceAddress::NvmeTcp(Box::new(parameters.spec().address())),
                size: Bytes::ZERO,
                block_size: 4096,
                connection: nvme.client(&parameters.volume())?.connection,
            };
            nvme.rejoin(&parameters.volume(), &wanted).map(|()| String::new())
        }
        "detach" => {
            nvme.detach(&parameters.volume())?;
            assert_eq!(nvme.device_of(&parameters.volume())?, None);
            Ok(String::new())
        }
        "size" => Ok(os.device_size_shown(device()).unwrap().to_string()),
        // Prints the sum of the counters in the first blocks of a device, past its page cache.
        "sum" => {
            let device = os.open_device(parameters.must("device").as_ref()).unwrap();
            let content = os.read_device_direct(&device, 0, WRITERS * STRIDE).unwrap();
            let counters = content.chunks(STRIDE).map(|block| u64::from_le_bytes(block[..8].try_into().unwrap()));
            Ok(counters.sum::<u64>().to_string())
        }
        // Writes counters until the device fails: its first blocks, one thread each.
        "write" => {
            let path = parameters.must("device");
            let written = AtomicU64::new(0);
            thread::scope(|scope| {
                for writer in 0..parameters.get("writers").map_or(WRITERS, |count| count.parse().unwrap()) {
                    let written = &written;
                    scope.spawn(move || write_until_it_fails(path, writer, written));
                }
            });
            Ok(written.into_inner().to_string())
        }
        _ => panic!("{step}?"),
    }
}

const WRITERS: usize = 64;
const BLOCK: usize = 4096;
/// Apart from each other, so that no two writes are merged.
const STRIDE: usize = 64 << 10;

fn write_until_it_fails(path: &str, writer: usize, written: &AtomicU64) {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let mut memory = vec![0_u8; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let block = &mut memory[start..start + BLOCK];
    for counter in 1_u64.. {
        block[..8].copy_from_slice(&counter.to_le_bytes());
        let offset = u64::try_from(writer * STRIDE).unwrap();
        if file.write_all_at(block, offset).is_err() {
            return;
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "in a guest: make guests"]
fn step() {
    let text = std::env::var(STEP).unwrap();
    let mut words = text.split_whitespace();
    let step = words.next().unwrap();
    let parameters = words.map(|word| word.split_once('=').unwrap());
    let parameters = Step(parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
    match take(step, &parameters) {
        Ok(result) => println!("\n=> ok {result}"),
        Err(error) => println!("\n=> error {:?}: {}", error.kind(), error.chain()),
    }
}
