//! The control messages of device-mapper (include/uapi/linux/dm-ioctl.h, interface version 4): a header, then targets.

#![expect(unsafe_code, reason = "ioctl(2) is unsafe by nature; the call states what the kernel touches")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::DevNum;

/// One target of a table, in sectors of 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmTarget {
    /// Its first sector.
    pub start: u64,
    /// Its length.
    pub length: u64,
    /// Its type, such as `linear`.
    pub kind: String,
    /// The parameters for the type.
    pub parameters: String,
}

/// DM_NAME_LEN and DM_UUID_LEN: both with the NUL at the end.
const NAME_LENGTH: usize = 128;
const UUID_LENGTH: usize = 129;
/// DM_MAX_TYPE_NAME.
const TYPE_LENGTH: usize = 16;
/// `struct dm_target_spec` without what follows it.
const SPEC: usize = 40;
/// Space for the targets of one message. Our devices have two. A device that another program changed may have more;
/// then DM_BUFFER_FULL_FLAG is set.
const DATA: usize = 16 * 1024;

/// DM_READONLY_FLAG: the table opens the devices below read-only, and the device rejects writes.
pub(super) const READ_ONLY: u32 = 1;
/// DM_SUSPEND_FLAG.
pub(super) const SUSPENDED: u32 = 1 << 1;
/// DM_PERSISTENT_DEV_FLAG: `dev` is the number of the new device.
pub(super) const CHOSEN_NUMBER: u32 = 1 << 3;
/// DM_STATUS_TABLE_FLAG: the table as it was loaded, not the targets' state.
pub(super) const AS_LOADED: u32 = 1 << 4;
/// DM_BUFFER_FULL_FLAG.
pub(super) const BUFFER_FULL: u32 = 1 << 8;
/// DM_SKIP_LOCKFS_FLAG: a suspend freezes no filesystem.
pub(super) const NO_FREEZE: u32 = 1 << 10;
/// DM_NOFLUSH_FLAG: a suspend keeps requests that have not started, for the next table.
pub(super) const NO_FLUSH: u32 = 1 << 11;

/// `struct dm_ioctl`.
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; NAME_LENGTH],
    uuid: [u8; UUID_LENGTH],
    data: [u8; 7],
}

const HEADER: usize = 312;
const _: () = assert!(size_of::<Header>() == HEADER);

#[repr(C)]
struct Message {
    header: Header,
    data: [u8; DATA],
}

mod raw {
    use super::Header;

    nix::ioctl_readwrite!(dm_version, 0xfd, 0, Header);
    nix::ioctl_readwrite!(dm_dev_create, 0xfd, 3, Header);
    nix::ioctl_readwrite!(dm_dev_remove, 0xfd, 4, Header);
    nix::ioctl_readwrite!(dm_dev_suspend, 0xfd, 6, Header);
    nix::ioctl_readwrite!(dm_table_load, 0xfd, 9, Header);
    nix::ioctl_readwrite!(dm_table_status, 0xfd, 12, Header);
}

/// The request to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// DM_VERSION: needs no capability and changes nothing.
    Version,
    /// DM_DEV_CREATE: a device without a table.
    Create,
    /// DM_DEV_REMOVE; EBUSY while it is open.
    Remove,
    /// DM_DEV_SUSPEND without DM_SUSPEND_FLAG: the loaded table becomes the live one.
    Resume,
    /// DM_TABLE_LOAD into the inactive slot.
    Load,
    /// DM_TABLE_STATUS.
    Status,
}

/// One message, to be filled in and sent.
pub(super) struct Request(Box<Message>);

/// The reply of the kernel.
pub(super) struct Reply(Box<Message>);

impl Request {
    /// A message without a device.
    pub(super) fn new() -> io::Result<Self> {
        let number = |size: usize| u32::try_from(size).map_err(io::Error::other);
        let header = Header {
            // The oldest minor version: the kernel rejects one above its own.
            version: [4, 0, 0],
            data_size: number(HEADER + DATA)?,
            data_start: number(HEADER)?,
            target_count: 0,
            open_count: 0,
            flags: 0,
            event_nr: 0,
            padding: 0,
            dev: 0,
            name: [0; NAME_LENGTH],
            uuid: [0; UUID_LENGTH],
            data: [0; 7],
        };
        Ok(Self(Box::new(Message { header, data: [0; DATA] })))
    }

    /// About the device with this uuid.
    pub(super) fn about(uuid: &str) -> io::Result<Self> {
        let mut request = Self::new()?;
        text(&mut request.0.header.uuid, uuid)?;
        Ok(request)
    }

    pub(super) fn name(mut self, name: &str) -> io::Result<Self> {
        text(&mut self.0.header.name, name)?;
        Ok(self)
    }

    pub(super) fn flags(mut self, flags: u32) -> Self {
        self.0.header.flags |= flags;
        self
    }

    /// The upper half tells udev's rules what to ignore (DM_UDEV_FLAGS_SHIFT of libdevmapper.h).
    pub(super) fn udev(mut self, flags: u16) -> Self {
        self.0.header.event_nr = u32::from(flags) << 16;
        self
    }

    /// The number of a new device.
    pub(super) fn minor(mut self, minor: u64) -> Self {
        // `huge_encode_dev`; the kernel uses only the minor.
        self.0.header.dev = (minor & 0xff) | ((minor & !0xff) << 12);
        self.flags(CHOSEN_NUMBER)
    }

    pub(super) fn targets(mut self, targets: &[DmTarget]) -> io::Result<Self> {
        let message = &mut *self.0;
        message.header.target_count = u32::try_from(targets.len()).map_err(io::Error::other)?;
        encode(targets, &mut message.data)?;
        Ok(self)
    }

    /// Sends it.
    pub(super) fn send(self, control: BorrowedFd<'_>, command: Command) -> io::Result<Reply> {
        let mut message = self.0;
        let (fd, header) = (control.as_raw_fd(), (&raw mut *message).cast::<Header>());
        // SAFETY: the kernel reads and writes `data_size` bytes, which is the length of the whole message, and the
        // message outlives the call.
        unsafe {
            match command {
                Command::Version => raw::dm_version(fd, header),
                Command::Create => raw::dm_dev_create(fd, header),
                Command::Remove => raw::dm_dev_remove(fd, header),
                Command::Resume => raw::dm_dev_suspend(fd, header),
                Command::Load => raw::dm_table_load(fd, header),
                Command::Status => raw::dm_table_status(fd, header),
            }
        }?;
        Ok(Reply(message))
    }
}

impl Reply {
    pub(super) fn version(&self) -> [u32; 3] {
        self.0.header.version
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.0.header.flags & flag != 0
    }

    pub(super) fn number(&self) -> DevNum {
        // `huge_encode_dev`, the format of stat(2).
        DevNum::from_dev_t(self.0.header.dev)
    }

    pub(super) fn open_count(&self) -> u32 {
        u32::try_from(self.0.header.open_count).unwrap_or(0)
    }

    pub(super) fn targets(&self) -> io::Result<Vec<DmTarget>> {
        if self.has(BUFFER_FULL) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the table is too long to be one that Holdfast loaded",
            ));
        }
        decode(self.0.header.target_count, &self.0.data)
    }
}

/// Writes NUL-terminated text into a field.
fn text(field: &mut [u8], text: &str) -> io::Result<()> {
    let fits = text.len() < field.len() && !text.is_empty() && !text.bytes().any(|byte| byte == 0);
    let room = field.get_mut(..text.len()).filter(|_| fits);
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is not a valid text for device-mapper"));
    room.ok_or_else(bad)?.copy_from_slice(text.as_bytes());
    Ok(())
}

/// `struct dm_target_spec` and its parameters, one after the other; `next` is the distance to the next one.
fn encode(targets: &[DmTarget], data: &mut [u8]) -> io::Result<()> {
    let mut out = Vec::new();
    for target in targets {
        let mut kind = [0; TYPE_LENGTH];
        text(&mut kind, &target.kind)?;
        let length = (SPEC + target.parameters.len() + 1).next_multiple_of(8);
        let end = out.len() + length;
        out.extend_from_slice(&target.start.to_ne_bytes());
        out.extend_from_slice(&target.length.to_ne_bytes());
        out.extend_from_slice(&0_i32.to_ne_bytes());
        out.extend_from_slice(&u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
        out.extend_from_slice(&kind);
        out.extend_from_slice(target.parameters.as_bytes());
        out.resize(end, 0);
    }
    let room = data.get_mut(..out.len()).ok_or(io::ErrorKind::InvalidInput)?;
    room.copy_from_slice(&out);
    Ok(())
}

/// The same as the kernel writes it; there `next` counts from the first.
fn decode(count: u32, data: &[u8]) -> io::Result<Vec<DmTarget>> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "device-mapper returned a table that cannot be parsed");
    let mut targets = Vec::new();
    let mut rest = data;
    for _ in 0..count {
        let (start, after) = rest.split_first_chunk::<8>().ok_or_else(broken)?;
        let (length, after) = after.split_first_chunk::<8>().ok_or_else(broken)?;
        let (_status, after) = after.split_first_chunk::<4>().ok_or_else(broken)?;
        let (next, after) = after.split_first_chunk::<4>().ok_or_else(broken)?;
        let (kind, after) = after.split_first_chunk::<TYPE_LENGTH>().ok_or_else(broken)?;
        targets.push(DmTarget {
            start: u64::from_ne_bytes(*start),
            length: u64::from_ne_bytes(*length),
            kind: until_nul(kind),
            parameters: until_nul(after),
        });
        let next = usize::try_from(u32::from_ne_bytes(*next)).map_err(io::Error::other)?;
        rest = data.get(next..).ok_or_else(broken)?;
    }
    Ok(targets)
}

fn until_nul(bytes: &[u8]) -> String {
    let text: Vec<u8> = bytes.iter().copied().take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(start: u64, length: u64, parameters: &str) -> DmTarget {
        DmTarget { start, length, kind: "linear".into(), parameters: parameters.into() }
    }

    #[test]
    fn targets_are_laid_out_as_the_kernel_reads_them() {
        let mut data = [0xff; 256];
        encode(&[linear(0, 8, "7:1 0"), linear(8, 16, "7:1 8")], &mut data).unwrap();
        // 40 bytes of the spec, "7:1 0" and its NUL, up to a multiple of 8.
        assert_eq!(u32::from_ne_bytes(data[20..24].try_into().unwrap()), 48);
        assert_eq!(&data[24..31], b"linear\0");
        assert_eq!(&data[40..48], b"7:1 0\0\0\0");
        assert_eq!(u64::from_ne_bytes(data[48..56].try_into().unwrap()), 8);
        assert_eq!(data[96], 0xff);
    }

    #[test]
    fn a_table_is_read_as_the_kernel_writes_it() {
        let wanted = [linear(0, 8, "7:1 0"), linear(8, 16, "7:1 8")];
        let mut data = [0; 256];
        encode(&wanted, &mut data).unwrap();
        // In answers `next` counts from the first target.
        data[48 + 20..48 + 24].copy_from_slice(&96_u32.to_ne_bytes());
        assert_eq!(decode(2, &data).unwrap(), wanted);
        data[20..24].copy_from_slice(&1000_u32.to_ne_bytes());
        assert!(decode(2, &data).is_err());
        assert!(decode(1, &data[..20]).is_err());
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert!(Request::about(&"x".repeat(UUID_LENGTH - 1)).is_ok());
        for bad in ["", "a\0b", &"x".repeat(UUID_LENGTH)] {
            assert!(Request::about(bad).is_err(), "{bad:?}");
        }
        assert!(Request::new().unwrap().targets(&[linear(0, 8, &"x".repeat(DATA))]).is_err());
    }
}
