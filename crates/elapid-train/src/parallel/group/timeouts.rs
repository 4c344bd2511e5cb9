//! How long ranks wait.

use std::time::Duration;

/// How long ranks wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until all ranks are connected.
    pub meeting: Duration,
    /// For the handshake of a connection.
    pub handshake: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Without any message from a rank before it counts as lost.
    pub silence: Duration,
    /// For detecting a lost rank as the cause of an error.
    pub cause: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let [meeting, handshake, heartbeat, silence, cause] = [600, 10, 5, 60, 3].map(Duration::from_secs);
        Self { meeting, handshake, heartbeat, silence, cause }
    }
}
