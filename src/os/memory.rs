//! Settings of the C library's allocator for a small daemon.

#![expect(unsafe_code, reason = "mallopt(3) is a C call")]

use super::Os;

/// Free memory at the end of the heap above this size is returned: glibc's own default. When it is set explicitly, it
/// no longer grows with the largest block ever freed.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: libc::c_int = 128 * 1024;

impl Os {
    /// Uses one heap for all threads. Otherwise glibc creates up to eight heaps for each processor and keeps the peak
    /// memory of each: listing 10 000 volumes then costs tens of MiB permanently. Calls here wait for disks, not for
    /// the lock of the heap. Call it before threads are started; without glibc it does nothing.
    pub fn use_one_heap(&self) {
        #[cfg(target_env = "gnu")]
        // SAFETY: mallopt(3) takes two numbers and keeps no pointer; an unknown parameter is rejected, not used.
        unsafe {
            let _ = libc::mallopt(libc::M_ARENA_MAX, 1);
            let _ = libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
        }
    }
}
