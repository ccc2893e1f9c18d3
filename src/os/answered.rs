//! Requests to a device that may never return: each runs in its own thread and is abandoned after a time limit. A
//! device with an abandoned request gets no new one.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use super::{LoopDevice, Os, Stopwatch};

/// The time limit for a device. The caller's own limit is minutes; this one is for one ioctl with at most one stat.
const LIMIT: Duration = Duration::from_secs(5);

/// The devices with an abandoned request, and its age.
#[derive(Clone, Debug, Default)]
pub(super) struct Unanswered(Arc<Mutex<HashMap<LoopDevice, Stopwatch>>>);

impl Unanswered {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<LoopDevice, Stopwatch>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Os {
    /// Runs a request to a device, and waits five seconds for the result.
    ///
    /// # Errors
    /// The request's own; `TimedOut` with the device when there is no result, or an earlier request is still running.
    pub(super) fn answered<T: Send + 'static>(
        &self,
        device: LoopDevice,
        question: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.answered_within(LIMIT, device, question)
    }

    fn answered_within<T: Send + 'static>(
        &self,
        limit: Duration,
        device: LoopDevice,
        question: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let silent = |age: Duration| {
            let message = format!(
                "{} has not answered for {} s: the filesystem of its image does not respond",
                device.path().display(),
                age.as_secs()
            );
            io::Error::new(io::ErrorKind::TimedOut, message)
        };
        let unanswered = self.inner.unanswered.clone();
        if let Some(since) = unanswered.with(|devices| devices.get(&device).map(Stopwatch::elapsed)) {
            return Err(silent(since));
        }
        let (answer, answered) = mpsc::sync_channel(1);
        let begun = Stopwatch::start();
        let done = unanswered.clone();
        thread::Builder::new().name("ask-device".to_owned()).spawn(move || {
            let said = question();
            // The caller may have stopped waiting: then this was the abandoned request.
            let _ = answer.send(said);
            done.with(|devices| devices.remove(&device));
        })?;
        match answered.recv_timeout(limit) {
            Ok(said) => said,
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(io::Error::other("the request ended without an answer")),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                unanswered.with(|devices| devices.insert(device, begun));
                // The result may have arrived in between.
                match answered.try_recv() {
                    Ok(said) => {
                        unanswered.with(|devices| devices.remove(&device));
                        said
                    }
                    Err(_) => Err(silent(begun.elapsed())),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_does_not_answer_is_asked_once_and_believed_when_it_does() {
        let os = Os::new();
        let (hanging, other) = (LoopDevice(1 << 30), LoopDevice((1 << 30) + 1));
        let (release, released) = mpsc::channel::<()>();
        let moment = Duration::from_millis(10);
        let hangs = move || released.recv().map_err(io::Error::other);
        let silent = os.answered_within(moment, hanging, hangs).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        let asked = os.answered(hanging, || -> io::Result<()> { panic!("it owes an answer") }).unwrap_err();
        assert!(asked.to_string().contains("has not answered"), "{asked}");
        assert_eq!(os.answered(other, || Ok(7)).unwrap(), 7);
        release.send(()).unwrap();
        while os.answered(hanging, || Ok(())).is_err() {
            thread::sleep(moment);
        }
    }
}
