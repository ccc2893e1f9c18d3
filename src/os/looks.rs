//! Scans whose result several calls may share.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Scans of one kind, one at a time.
#[derive(Debug, Default)]
pub(super) struct Looks<T> {
    /// The number of calls so far.
    asked: AtomicU64,
    /// The last scan, and the number of calls when it began.
    last: Mutex<(u64, Arc<T>)>,
}

impl<T> Looks<T> {
    /// The result of a scan that begins from now on, by this call or by another one that waits too.
    pub(super) fn share(&self, look: impl FnOnce() -> io::Result<T>) -> io::Result<Arc<T>> {
        let turn = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 < turn {
            let asked = self.asked.load(Ordering::SeqCst);
            *last = (asked, Arc::new(look()?));
        }
        Ok(Arc::clone(&last.1))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_look_is_shared_by_those_who_asked_before_it_began() {
        let looks = Looks::default();
        let found = |number: u64| Ok(number);
        let (begun, begins) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                looks.share(move || {
                    begun.send(()).unwrap();
                    released.recv().unwrap();
                    found(1)
                })
            });
            begins.recv().unwrap();
            // These ask while the first look is under way, which may have missed what they must see.
            let ask = |number| looks.share(|| found(number));
            let later = [2, 3, 4].map(|number| scope.spawn(move || ask(number)));
            while looks.asked.load(Ordering::SeqCst) < 4 {
                thread::yield_now();
            }
            release.send(()).unwrap();
            assert_eq!(*first.join().unwrap().unwrap(), found(1).unwrap());
            let later = later.map(|asker| asker.join().unwrap().unwrap());
            assert!(later.iter().all(|bound| Arc::ptr_eq(bound, &later[0])), "{later:?}");
            assert_ne!(*later[0], found(1).unwrap());
        });
        assert_eq!(*looks.share(|| found(9)).unwrap(), found(9).unwrap(), "nobody else waited");
        assert!(looks.share(|| Err(io::Error::other("on purpose"))).is_err());
        assert_eq!(*looks.share(|| found(10)).unwrap(), found(10).unwrap());
    }
}
