//! Every ioctl, with its structure and its source in the kernel. The private parts are unsafe. The wrappers are safe
//! because the kernel reads or writes exactly the given structure.

#![expect(unsafe_code, reason = "ioctl(2) is unsafe by nature; each call states what the kernel touches")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use linux_raw_sys::loop_device::{
    LO_FLAGS_AUTOCLEAR, LOOP_CLR_FD, LOOP_CONFIGURE, LOOP_CTL_ADD, LOOP_CTL_GET_FREE, LOOP_CTL_REMOVE,
    LOOP_GET_STATUS64, LOOP_SET_CAPACITY, LOOP_SET_STATUS64, loop_config, loop_info64,
};

mod raw {
    //! Request numbers and layouts: include/uapi/linux/{loop,fs,fiemap}.h and fs/{ext4/ext4.h,xfs/libxfs/xfs_fs.h}.
    use linux_raw_sys::loop_device::{loop_config, loop_info64};

    nix::ioctl_none_bad!(loop_ctl_get_free, super::LOOP_CTL_GET_FREE);
    nix::ioctl_write_int_bad!(loop_ctl_add, super::LOOP_CTL_ADD);
    nix::ioctl_write_int_bad!(loop_ctl_remove, super::LOOP_CTL_REMOVE);
    nix::ioctl_none_bad!(loop_clr_fd, super::LOOP_CLR_FD);
    #[cfg(test)]
    nix::ioctl_write_int_bad!(loop_change_fd, linux_raw_sys::loop_device::LOOP_CHANGE_FD);
    nix::ioctl_none_bad!(loop_set_capacity, super::LOOP_SET_CAPACITY);
    nix::ioctl_write_ptr_bad!(loop_configure, super::LOOP_CONFIGURE, loop_config);
    nix::ioctl_read_bad!(loop_get_status64, super::LOOP_GET_STATUS64, loop_info64);
    nix::ioctl_write_ptr_bad!(loop_set_status64, super::LOOP_SET_STATUS64, loop_info64);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), libc::c_int);
    nix::ioctl_none!(blkflsbuf, 0x12, 97);
    nix::ioctl_read!(blkgetdiskseq, 0x12, 128, u64);
    nix::ioctl_write_int!(ficlone, 0x94, 9);
    nix::ioctl_read!(fs_ioc_fsgetxattr, b'X', 31, super::FsXattr);
    nix::ioctl_write_ptr!(fs_ioc_fssetxattr, b'X', 32, super::FsXattr);
    nix::ioctl_read!(fs_ioc_getflags, b'f', 1, libc::c_long);
    nix::ioctl_write_ptr!(fs_ioc_setflags, b'f', 2, libc::c_long);
    nix::ioctl_readwrite!(fs_ioc_fiemap, b'f', 11, super::FiemapHeader);
    nix::ioctl_write_ptr!(ext4_ioc_resize_fs, b'f', 16, u64);
    nix::ioctl_read!(xfs_ioc_fsgeometry_v1, b'X', 100, super::XfsGeometryV1);
    nix::ioctl_write_ptr!(xfs_ioc_fsgrowfsdata, b'X', 110, super::XfsGrowfsData);
}

/// `struct fsxattr` of include/uapi/linux/fs.h.
#[repr(C)]
#[derive(Default)]
pub(super) struct FsXattr {
    pub(super) xflags: u32,
    pub(super) extsize: u32,
    nextents: u32,
    projid: u32,
    pub(super) cowextsize: u32,
    pad: [u8; 8],
}

/// `struct fiemap` of include/uapi/linux/fiemap.h, without its extents.
#[repr(C)]
#[derive(Default)]
pub(super) struct FiemapHeader {
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) flags: u32,
    pub(super) mapped_extents: u32,
    pub(super) extent_count: u32,
    pub(super) reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct FiemapExtent {
    pub(super) logical: u64,
    pub(super) physical: u64,
    pub(super) length: u64,
    reserved64: [u64; 2],
    pub(super) flags: u32,
    reserved: [u32; 3],
}

/// The number of extents that one FIEMAP call returns here.
pub(super) const FIEMAP_BATCH: usize = 256;

/// A FIEMAP request with space for [`FIEMAP_BATCH`] extents directly after the header, as the kernel requires.
#[repr(C)]
pub(super) struct Fiemap {
    pub(super) header: FiemapHeader,
    pub(super) extents: [FiemapExtent; FIEMAP_BATCH],
}

/// `struct xfs_growfs_data` of fs/xfs/libxfs/xfs_fs.h.
#[repr(C)]
struct XfsGrowfsData {
    newblocks: u64,
    imaxpct: u32,
}

/// `struct xfs_fsop_geom_v1` of fs/xfs/libxfs/xfs_fs.h.
#[repr(C)]
#[derive(Default)]
struct XfsGeometryV1 {
    blocksize: u32,
    rtextsize: u32,
    agblocks: u32,
    agcount: u32,
    logblocks: u32,
    sectsize: u32,
    inodesize: u32,
    imaxpct: u32,
    datablocks: u64,
    rtblocks: u64,
    rtextents: u64,
    logstart: u64,
    uuid: [u8; 16],
    sunit: u32,
    swidth: u32,
    version: i32,
    flags: u32,
    logsectsize: u32,
    rtsectsize: u32,
    dirblocksize: u32,
}

/// LOOP_CTL_GET_FREE: the number of a loop device that is free now (another process may take it first).
pub(super) fn loop_ctl_get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: takes no pointer.
    let number = unsafe { raw::loop_ctl_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(io::Error::other)
}

/// LOOP_CTL_ADD: creates the loop device of this number; EEXIST when it exists.
pub(super) fn loop_ctl_add(control: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    let number = libc::c_int::try_from(number).map_err(io::Error::other)?;
    // SAFETY: takes no pointer.
    unsafe { raw::loop_ctl_add(control.as_raw_fd(), number) }?;
    Ok(())
}

/// LOOP_CTL_ADD without a number: creates a loop device with an unused number, and returns that number.
pub(super) fn loop_ctl_add_any(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: takes no pointer.
    let number = unsafe { raw::loop_ctl_add(control.as_raw_fd(), -1) }?;
    u32::try_from(number).map_err(io::Error::other)
}

/// LOOP_CTL_REMOVE: removes a loop device without an image; EBUSY when it has one or is open.
pub(super) fn loop_ctl_remove(control: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    let number = libc::c_int::try_from(number).map_err(io::Error::other)?;
    // SAFETY: takes no pointer.
    unsafe { raw::loop_ctl_remove(control.as_raw_fd(), number) }?;
    Ok(())
}

/// LOOP_CONFIGURE: backing file, block size and flags in one step.
pub(super) fn loop_configure(device: BorrowedFd<'_>, config: &loop_config) -> io::Result<()> {
    // SAFETY: the kernel reads one loop_config, which outlives the call.
    unsafe { raw::loop_configure(device.as_raw_fd(), config) }?;
    Ok(())
}

/// LOOP_GET_STATUS64; ENXIO when no image is attached.
pub(super) fn loop_get_status(device: BorrowedFd<'_>) -> io::Result<loop_info64> {
    // SAFETY: loop_info64 is plain numbers and byte arrays, for which all zeroes is a value.
    let mut info: loop_info64 = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one loop_info64 into ours.
    unsafe { raw::loop_get_status64(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

/// LOOP_SET_STATUS64 with the result of LOOP_GET_STATUS64, without the autoclear flag of a lazy LOOP_CLR_FD.
pub(super) fn loop_keep(device: BorrowedFd<'_>, info: &mut loop_info64) -> io::Result<()> {
    info.lo_flags &= !(LO_FLAGS_AUTOCLEAR as u32);
    // SAFETY: the kernel reads one loop_info64, which outlives the call.
    unsafe { raw::loop_set_status64(device.as_raw_fd(), info) }?;
    Ok(())
}

/// A zeroed loop_config to fill in.
pub(super) fn empty_loop_config() -> loop_config {
    // SAFETY: loop_config is plain numbers and byte arrays, for which all zeroes is a value.
    unsafe { std::mem::zeroed() }
}

/// LOOP_CHANGE_FD.
#[cfg(test)]
pub(super) fn loop_change_fd(device: BorrowedFd<'_>, image: &std::fs::File) -> io::Result<()> {
    // SAFETY: takes a descriptor as a number.
    unsafe { raw::loop_change_fd(device.as_raw_fd(), image.as_raw_fd()) }?;
    Ok(())
}

/// LOOP_CLR_FD: also returns 0 if it only set the autoclear flag of a device that is in use; check the status
/// afterwards.
pub(super) fn loop_clr_fd(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointer.
    unsafe { raw::loop_clr_fd(device.as_raw_fd()) }?;
    Ok(())
}

/// LOOP_SET_CAPACITY: resizes the device to the current size of the backing file.
pub(super) fn loop_set_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointer.
    unsafe { raw::loop_set_capacity(device.as_raw_fd()) }?;
    Ok(())
}

/// BLKGETSIZE64: bytes.
pub(super) fn block_size64(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size = 0;
    // SAFETY: the kernel writes one u64 into ours.
    unsafe { raw::blkgetsize64(device.as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

/// BLKSSZGET: logical block size, bytes.
pub(super) fn logical_block_size(device: BorrowedFd<'_>) -> io::Result<u32> {
    let mut size = 0;
    // SAFETY: the kernel writes one int into ours.
    unsafe { raw::blksszget(device.as_raw_fd(), &raw mut size) }?;
    u32::try_from(size).map_err(io::Error::other)
}

/// BLKGETDISKSEQ (include/uapi/linux/fs.h): the sequence number of the disk's content; `None` before Linux 5.15.
pub(super) fn disk_sequence(device: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let mut sequence = 0;
    // SAFETY: the kernel writes one u64 into ours.
    match unsafe { raw::blkgetdiskseq(device.as_raw_fd(), &raw mut sequence) } {
        Ok(_) => Ok(Some(sequence)),
        Err(nix::errno::Errno::ENOTTY | nix::errno::Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// BLKFLSBUF: writes back and drops the device's page cache.
pub(super) fn flush_buffers(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointer.
    unsafe { raw::blkflsbuf(device.as_raw_fd()) }?;
    Ok(())
}

/// FICLONE (ioctl_ficlone(2)): `to` shares all of `from`'s extents.
pub(super) fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let source = libc::c_ulong::try_from(from.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: passes two descriptors, no pointer.
    unsafe { raw::ficlone(to.as_raw_fd(), source) }?;
    Ok(())
}

/// FS_IOC_FSGETXATTR.
pub(super) fn get_xattr(file: BorrowedFd<'_>) -> io::Result<FsXattr> {
    let mut attr = FsXattr::default();
    // SAFETY: the kernel writes one fsxattr into ours.
    unsafe { raw::fs_ioc_fsgetxattr(file.as_raw_fd(), &raw mut attr) }?;
    Ok(attr)
}

/// FS_IOC_FSSETXATTR.
pub(super) fn set_xattr(file: BorrowedFd<'_>, attr: &FsXattr) -> io::Result<()> {
    // SAFETY: the kernel reads one fsxattr, which outlives the call.
    unsafe { raw::fs_ioc_fssetxattr(file.as_raw_fd(), attr) }?;
    Ok(())
}

/// FS_IOC_GETFLAGS (ioctl_iflags(2)). The kernel writes an int, despite the request number.
pub(super) fn get_flags(file: BorrowedFd<'_>) -> io::Result<libc::c_long> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes at most a long into ours.
    unsafe { raw::fs_ioc_getflags(file.as_raw_fd(), &raw mut flags) }?;
    Ok(flags)
}

/// FS_IOC_SETFLAGS (ioctl_iflags(2)).
pub(super) fn set_flags(file: BorrowedFd<'_>, flags: libc::c_long) -> io::Result<()> {
    // SAFETY: the kernel reads at most a long, which outlives the call.
    unsafe { raw::fs_ioc_setflags(file.as_raw_fd(), &raw const flags) }?;
    Ok(())
}

/// FIEMAP (Documentation/filesystems/fiemap.rst) with `extent_count` 0: only counts.
pub(super) fn fiemap_count(file: BorrowedFd<'_>, header: &mut FiemapHeader) -> io::Result<()> {
    header.extent_count = 0;
    // SAFETY: extent_count is 0, so the kernel writes the header only.
    unsafe { raw::fs_ioc_fiemap(file.as_raw_fd(), header) }?;
    Ok(())
}

/// FIEMAP with up to [`FIEMAP_BATCH`] extents.
pub(super) fn fiemap(file: BorrowedFd<'_>, request: &mut Fiemap) -> io::Result<()> {
    request.header.extent_count = u32::try_from(FIEMAP_BATCH).map_err(io::Error::other)?;
    let whole: *mut Fiemap = request;
    // SAFETY: the header is the first field of a repr(C) Fiemap and FIEMAP_BATCH extents follow it; the pointer is
    // derived from the whole, so the kernel writes inside it.
    unsafe { raw::fs_ioc_fiemap(file.as_raw_fd(), whole.cast::<FiemapHeader>()) }?;
    Ok(())
}

/// EXT4_IOC_RESIZE_FS (fs/ext4/ioctl.c): grows the mounted filesystem to this number of blocks. Requires
/// CAP_SYS_RESOURCE.
pub(super) fn ext4_resize(mount: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // SAFETY: the kernel reads one u64, which outlives the call.
    unsafe { raw::ext4_ioc_resize_fs(mount.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// XFS_IOC_FSGROWFSDATA (fs/xfs/xfs_fsops.c): grows the mounted filesystem to this number of blocks.
pub(super) fn xfs_growfs(mount: BorrowedFd<'_>, blocks: u64, imaxpct: u32) -> io::Result<()> {
    let request = XfsGrowfsData { newblocks: blocks, imaxpct };
    // SAFETY: the kernel reads one xfs_growfs_data, which outlives the call.
    unsafe { raw::xfs_ioc_fsgrowfsdata(mount.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// XFS_IOC_FSGEOMETRY_V1 (fs/xfs/xfs_ioctl.c): bytes per block, blocks, and the percentage inodes may take.
pub(super) fn xfs_geometry(mount: BorrowedFd<'_>) -> io::Result<(u32, u64, u32)> {
    let mut geometry = XfsGeometryV1::default();
    // SAFETY: the kernel writes one xfs_fsop_geom_v1 into ours.
    unsafe { raw::xfs_ioc_fsgeometry_v1(mount.as_raw_fd(), &raw mut geometry) }?;
    Ok((geometry.blocksize, geometry.datablocks, geometry.imaxpct))
}
