//! Checks whether a mounted filesystem responds. One that never does blocks its caller only briefly, and one thread.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{Call, DevNum, Os, Stopwatch};

/// One request to one filesystem. Several callers wait for the same result.
#[derive(Debug)]
pub(super) struct Question {
    since: Stopwatch,
    answer: Mutex<Option<Answer>>,
    answered: Condvar,
}

/// The result of lstat(2): the errno of its error, if it has one.
type Answer = Result<(), Option<i32>>;

impl Os {
    /// Reads the root directory of a mounted filesystem, and waits for the result up to the limit. `device` is the
    /// filesystem's, as mountinfo shows it. A request without a result stays the only one to that filesystem until it
    /// returns from the kernel.
    ///
    /// # Errors
    /// Those of lstat(2): EIO of an XFS that was shut down; `TimedOut` with the time since the request.
    pub fn filesystem_answers(&self, device: DevNum, point: &Path, limit: Duration) -> io::Result<()> {
        let (question, is_new) = {
            let mut asked = self.inner.asked.lock().unwrap_or_else(PoisonError::into_inner);
            match asked.get(&device) {
                Some(question) => (Arc::clone(question), false),
                None => {
                    let question =
                        Question { since: Stopwatch::start(), answer: Mutex::new(None), answered: Condvar::new() };
                    let question = Arc::new(question);
                    asked.insert(device, Arc::clone(&question));
                    (question, true)
                }
            }
        };
        if is_new {
            let (os, question, path) = (self.clone(), Arc::clone(&question), point.to_owned());
            let asks = move || {
                let said = os.call(Call::FsAnswers, &path.display(), || std::fs::symlink_metadata(&path).map(drop));
                os.forget_question(device);
                question.settle(said.map_err(|error| error.raw_os_error()));
            };
            let started = thread::Builder::new().name("filesystem".to_owned()).spawn(asks);
            started.inspect_err(|_| self.forget_question(device))?;
        }
        question.wait(limit)
    }

    fn forget_question(&self, device: DevNum) {
        self.inner.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&device);
    }
}

impl Question {
    fn settle(&self, answer: Answer) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.answered.notify_all();
    }

    fn wait(&self, limit: Duration) -> io::Result<()> {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let left = limit.saturating_sub(self.since.elapsed());
        let (answer, _) = self
            .answered
            .wait_timeout_while(answer, left, |answer| answer.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match *answer {
            Some(Ok(())) => Ok(()),
            Some(Err(Some(errno))) => Err(io::Error::from_raw_os_error(errno)),
            Some(Err(None)) => Err(io::Error::other("its status cannot be read")),
            None => {
                let said = format!("no answer for {} s", self.since.elapsed().as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, said))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::os::Interceptor;

    const LIMIT: Duration = Duration::from_millis(200);
    const A: DevNum = DevNum { major: 7, minor: 1 };
    const B: DevNum = DevNum { major: 7, minor: 2 };

    /// Blocks a call on `/hangs` until it is released, and signals each arrival.
    struct Hangs {
        came: Mutex<Sender<()>>,
        released: Mutex<Receiver<()>>,
    }

    impl Interceptor for Hangs {
        fn before(&self, _call: Call, target: &str) -> io::Result<()> {
            if target == "/hangs" {
                self.came.lock().unwrap().send(()).unwrap();
                let _ = self.released.lock().unwrap().recv();
            }
            Ok(())
        }

        fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_that_never_answers_costs_a_moment_and_one_thread() {
        let (came, arrivals) = channel();
        let (release, released) = channel();
        let os = Os::intercepted(Box::new(Hangs { came: Mutex::new(came), released: Mutex::new(released) }));
        let hung = Path::new("/hangs");
        for _ in 0..3 {
            let error = os.filesystem_answers(A, hung, LIMIT).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            os.filesystem_answers(B, Path::new("/"), Duration::from_secs(60)).unwrap();
        }
        assert_eq!(arrivals.try_iter().count(), 1, "one question at a time");
        drop(release);
        // Answered: the next request is a new one.
        while os.inner.asked.lock().unwrap().contains_key(&A) {
            thread::sleep(Duration::from_millis(1));
        }
        let error = os.filesystem_answers(A, Path::new("/no/such/path"), Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
