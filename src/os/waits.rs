//! Calls that the kernel may work on for ever: each runs in its own thread and is abandoned after a time limit. While an
//! abandoned one runs, the next one for the same object fails.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use super::Stopwatch;

/// The running calls, by their object, and since when.
#[derive(Clone, Debug, Default)]
pub(super) struct Waits(Arc<Mutex<HashMap<String, Stopwatch>>>);

impl Waits {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<String, Stopwatch>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a call in a thread of its own, and waits for it up to a limit. While an abandoned one runs, the next one for
    /// the same object fails.
    pub(super) fn within<T: Send + 'static>(
        &self,
        limit: Duration,
        object: &str,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let late = |age: Duration| {
            let message = format!("{object} has not finished for {} s; the kernel still works on it", age.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, message)
        };
        let begun = Stopwatch::start();
        let earlier = self.with(|waits| {
            let earlier = waits.get(object).map(Stopwatch::elapsed);
            if earlier.is_none() {
                waits.insert(object.to_owned(), begun);
            }
            earlier
        });
        if let Some(age) = earlier {
            return Err(late(age));
        }
        let (waits, key) = (self.clone(), object.to_owned());
        let (answer, answered) = mpsc::sync_channel(1);
        let work = move || {
            let result = call();
            waits.with(|waits| waits.remove(&key));
            // The caller may have stopped waiting.
            let _ = answer.send(result);
        };
        if let Err(error) = thread::Builder::new().name("kernel-call".to_owned()).spawn(work) {
            self.with(|waits| waits.remove(object));
            return Err(error);
        }
        match answered.recv_timeout(limit) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(late(begun.elapsed())),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(io::Error::other("the call ended without a result")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abandoned_call_is_the_only_one_for_its_object_until_it_ends() {
        let waits = Waits::default();
        let (release, released) = mpsc::channel::<()>();
        let moment = Duration::from_millis(10);
        let hangs = move || released.recv().map_err(io::Error::other);
        assert_eq!(waits.within(moment, "a", hangs).unwrap_err().kind(), io::ErrorKind::TimedOut);
        let error = waits.within(moment, "a", || Ok(())).unwrap_err();
        assert!(error.kind() == io::ErrorKind::TimedOut && error.to_string().contains("has not finished"), "{error}");
        waits.within(Duration::from_secs(60), "b", || Ok(())).unwrap();
        release.send(()).unwrap();
        while waits.within(moment, "a", || Ok(())).is_err() {
            thread::sleep(moment);
        }
    }
}
