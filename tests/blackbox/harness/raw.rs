//! A low-level HTTP/2 client (RFC 9113) that can also violate the protocol, and figures of the server process.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Frame types of RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// SETTINGS_INITIAL_WINDOW_SIZE.
const WINDOW: [u8; 2] = [0, 4];

/// One connection.
#[derive(Debug)]
pub(crate) struct Raw(UnixStream);

impl Raw {
    /// Connects, and sends nothing yet. Writes have a timeout: a server that stops reading has answered.
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        Self(stream)
    }

    /// Sends bytes as they are; false when the server has closed, or does not read them.
    pub(crate) fn say(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// The beginning of a connection. With `window` zero the server may send no answer's data.
    pub(crate) fn greet(&mut self, window: u32) -> bool {
        let setting = [WINDOW.as_slice(), &window.to_be_bytes()].concat();
        self.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") && self.frame(SETTINGS, 0, 0, &setting)
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.say(&[&head, payload].concat())
    }

    /// Begins a call; `more` are further headers.
    pub(crate) fn call(&mut self, stream: u32, path: &str, more: &[(&str, &str)]) -> bool {
        let usual = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let mut block = Vec::new();
        for (name, value) in usual.iter().chain(more) {
            // RFC 7541, section 6.2.2: a literal field without indexing, its name as a string.
            block.push(0);
            string(&mut block, name);
            string(&mut block, value);
        }
        self.frame(HEADERS, END_HEADERS, stream, &block)
    }

    /// A gRPC message whose head says `length`; the last frame of the call if `end`.
    pub(crate) fn message(&mut self, stream: u32, length: u32, payload: &[u8], end: bool) -> bool {
        let whole = [&[0], length.to_be_bytes().as_slice(), payload].concat();
        let frames: Vec<_> = whole.chunks(16_000).collect();
        let last = frames.len() - 1;
        frames.into_iter().enumerate().all(|(i, part)| {
            let flags = if end && i == last { END_STREAM } else { 0 };
            self.frame(DATA, flags, stream, part)
        })
    }

    /// Answers the server's pings (RFC 9113, section 6.7) from now on, and reads nothing else; ends when the server
    /// closes.
    pub(crate) fn answer_pings(&self) -> std::thread::JoinHandle<()> {
        let mut raw = Self(self.0.try_clone().unwrap());
        std::thread::spawn(move || {
            let (mut head, mut payload) = ([0; 9], Vec::new());
            while raw.0.read_exact(&mut head).is_ok() {
                payload.resize(usize::from(head[1]) << 8 | usize::from(head[2]), 0);
                if raw.0.read_exact(&mut payload).is_err() {
                    return;
                }
                if head[3] == PING && head[4] & ACK == 0 && !raw.frame(PING, ACK, 0, &payload) {
                    return;
                }
            }
        })
    }

    /// The client sends nothing more, and still reads.
    pub(crate) fn hang_up_half(&self) {
        self.0.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// The client disconnects.
    pub(crate) fn hang_up(&self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    /// Whether the server closes the connection within the time; what it sends before is dropped.
    pub(crate) fn closed_within(&mut self, limit: Duration) -> bool {
        self.0.set_read_timeout(Some(limit)).unwrap();
        let mut buffer = [0; 4096];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}

/// RFC 7541, section 5.2, without Huffman's code.
fn string(block: &mut Vec<u8>, text: &str) {
    if text.len() < 127 {
        block.push(u8::try_from(text.len()).unwrap());
    } else {
        block.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            block.push(u8::try_from(rest % 128 + 128).unwrap());
            rest /= 128;
        }
        block.push(u8::try_from(rest).unwrap());
    }
    block.extend_from_slice(text.as_bytes());
}

/// Resident memory of a process, KiB, and its open file descriptors; `None` when it has ended.
pub(crate) fn figures(pid: u32) -> Option<(u64, usize)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let resident = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some((resident, fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count()))
}
