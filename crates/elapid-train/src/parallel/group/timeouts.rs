//! How long ranks wait.

use std::time::Duration;

/// How long ranks wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For all ranks to come.
    pub meeting: Duration,
    /// For the handshake of a connection.
    pub handshake: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// For anything from a rank, before it is lost.
    pub silence: Duration,
    /// For the cause of an error that a lost rank may have caused.
    pub cause: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let [meeting, handshake, heartbeat, silence, cause] = [600, 10, 5, 60, 3].map(Duration::from_secs);
        Self { meeting, handshake, heartbeat, silence, cause }
    }
}
