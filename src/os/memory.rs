//! The C library's allocator, told that this is a small daemon.

#![expect(unsafe_code, reason = "mallopt(3) is a C call")]

use super::Os;

/// Memory at the end of the heap that is given back when more than this is free: glibc's own default. Said outright,
/// it no longer grows with the largest block that was ever freed.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: libc::c_int = 128 * 1024;

impl Os {
    /// One heap for all threads. glibc otherwise makes one for each of up to eight threads a processor and keeps what
    /// each once took: listing 10 000 volumes then costs tens of MiB for good. Calls here wait for disks, not for the
    /// heap's lock. To be called before threads are started; elsewhere than on glibc it does nothing.
    pub fn use_one_heap(&self) {
        #[cfg(target_env = "gnu")]
        // SAFETY: mallopt(3) takes two numbers and keeps no pointer; a parameter it does not know is refused, not used.
        unsafe {
            let _ = libc::mallopt(libc::M_ARENA_MAX, 1);
            let _ = libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
        }
    }
}
