//! File descriptors: the part of the process's limit that each port may use, so that enough are left for the work. The
//! parts are scaled down where the limit is low.

/// The limit of open files of this process, divided among its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    limit: usize,
}

/// The least that a port gets.
const LEAST: usize = 8;
/// With so many, every port has its full number of connections.
const ENOUGH: usize = 8192;

impl Shares {
    /// For this limit.
    #[must_use]
    pub fn of(limit: u64) -> Self {
        Self { limit: usize::try_from(limit).unwrap_or(usize::MAX) }
    }

    /// The limit that would be sufficient, if this one is not.
    #[must_use]
    pub fn wanted(self) -> Option<usize> {
        (self.limit < ENOUGH).then_some(ENOUGH)
    }

    fn part(self, parts: usize, most: usize) -> usize {
        (self.limit / parts).clamp(LEAST, most)
    }

    /// Connections to the CSI socket. As many more may be open while they are being closed.
    #[must_use]
    pub fn csi(self) -> usize {
        self.part(8, 256)
    }

    /// Connections of other daemons.
    #[must_use]
    pub fn daemons(self) -> usize {
        self.part(8, 1024)
    }

    /// Handshakes with other daemons, and with nodes that request a certificate: for each of the two ports.
    #[must_use]
    pub fn handshakes(self) -> usize {
        self.part(32, 256)
    }

    /// Connections of nodes that request a certificate.
    #[must_use]
    pub fn enrolling(self) -> usize {
        self.part(32, 128)
    }

    /// Connections to metrics and health.
    #[must_use]
    pub fn health(self) -> usize {
        self.part(64, 64)
    }

    /// Connections of kubelet for the registration.
    #[must_use]
    pub fn registration(self) -> usize {
        self.part(128, 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ports_together_leave_a_third_for_the_work_whatever_the_limit() {
        for limit in [256, 512, 1024, 4096, 8192, 1 << 20, u64::MAX] {
            let shares = Shares::of(limit);
            // Each port that closes idle connections may have as many again for a moment.
            let taken = 2 * (shares.csi() + shares.health() + shares.registration())
                + shares.daemons()
                + 2 * shares.handshakes()
                + shares.enrolling();
            let left = usize::try_from(limit).unwrap_or(usize::MAX) - taken;
            assert!(left >= usize::try_from(limit / 3).unwrap_or_default().min(300), "{limit}: {taken} are taken");
        }
        assert_eq!((Shares::of(1024).csi(), Shares::of(65_536).csi()), (128, 256));
        assert!(Shares::of(1024).wanted().is_some() && Shares::of(8192).wanted().is_none());
    }
}
