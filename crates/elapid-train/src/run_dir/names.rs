//! Names of files in a run's directory.

/// The settings of the run.
pub(super) const CONFIG: &str = "config.toml";

/// The folder of checkpoints.
pub(super) const RESUME: &str = "resume";

/// In that folder until there is a first checkpoint: what stands in the directory is then this run's, and may be
/// replaced by the same run begun anew.
pub(super) const BEGUN: &str = "begun";
