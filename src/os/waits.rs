//! Calls that the kernel may work on for ever: each runs in its own thread and is abandoned after a time limit. While an
//! abandoned one runs, the next one for the same object fails.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use super::Stopwatch;

/// The running calls, by their object.
#[derive(Clone, Debug, Default)]
pub(super) struct Waits(Arc<Mutex<HashMap<String, Running>>>);

#[derive(Clone, Copy, Debug)]
struct Running {
    since: Stopwatch,
    /// The caller no longer waits.
    is_abandoned: bool,
}

impl Waits {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<String, Running>) -> T) -> T {
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
        self.within_or_undone(limit, object, call, |_| {})
    }

    /// The same, and takes back what an abandoned call did in the end. The object is free for the next call after that.
    pub(super) fn within_or_undone<T: Send + 'static>(
        &self,
        limit: Duration,
        object: &str,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
        undo: impl FnOnce(T) + Send + 'static,
    ) -> io::Result<T> {
        let late = |age: Duration| {
            let message = format!("{object} has not finished for {} s; the kernel still works on it", age.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, message)
        };
        let begun = Stopwatch::start();
        let earlier = self.with(|waits| {
            let earlier = waits.get(object).map(|running| running.since.elapsed());
            if earlier.is_none() {
                waits.insert(object.to_owned(), Running { since: begun, is_abandoned: false });
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
            let is_awaited = waits.with(|waits| {
                let is_awaited = waits.get(&key).is_some_and(|running| !running.is_abandoned);
                if is_awaited {
                    waits.remove(&key);
                }
                is_awaited
            });
            if is_awaited {
                let _ = answer.send(result);
                return;
            }
            if let Ok(made) = result {
                undo(made);
            }
            waits.with(|waits| waits.remove(&key));
        };
        if let Err(error) = thread::Builder::new().name("kernel-call".to_owned()).spawn(work) {
            self.with(|waits| waits.remove(object));
            return Err(error);
        }
        match answered.recv_timeout(limit) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let is_running = self.with(|waits| match waits.get_mut(object) {
                    Some(running) => {
                        running.is_abandoned = true;
                        true
                    }
                    None => false,
                });
                // It has finished at this moment: its result comes.
                let result = if is_running { None } else { answered.recv().ok() };
                result.unwrap_or_else(|| Err(late(begun.elapsed())))
            }
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

    #[test]
    fn what_an_abandoned_call_did_is_undone_before_the_next_one() {
        let waits = Waits::default();
        let (release, released) = mpsc::channel::<()>();
        let (told, undone) = mpsc::channel::<u32>();
        let moment = Duration::from_millis(10);
        let hangs = move || released.recv().map(|()| 7).map_err(io::Error::other);
        let undo = move |made| {
            thread::sleep(Duration::from_millis(50));
            told.send(made).unwrap();
        };
        assert!(waits.within_or_undone(moment, "a", hangs, undo).is_err());
        release.send(()).unwrap();
        while waits.within(Duration::from_secs(60), "a", || Ok(())).is_err() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(undone.try_recv(), Ok(7), "the next call waits for the undo");
        // One that is awaited is not undone.
        let kept = waits.within_or_undone(Duration::from_secs(60), "a", || Ok(8), |_| panic!("it is in use"));
        assert_eq!(kept.unwrap(), 8);
    }
}
