//! Names of files in a run's directory.

/// The settings of the run.
pub(super) const CONFIG: &str = "config.toml";

/// The folder of checkpoints.
pub(super) const RESUME: &str = "resume";

/// Marker in that folder until there is a first checkpoint. While it exists, the files in the directory are this run's, and
/// the same run, started again, may replace them.
pub(super) const BEGUN: &str = "begun";
