//! Synthetic tasks: sequences whose answers follow from earlier positions.
//!
//! A task draws sequences from a random generator, position by position, so a million positions take no more memory than a
//! hundred. Nothing is stored: sequence `i` of a [`Split`] is a function of the seed and `i` ([`Sequences`]). To add a task:
//! one file with a [`Kind`], and a line in [`KINDS`].

mod copying;
mod induction_heads;
mod mqar;
mod score;
mod sequences;
mod state_tracking;
mod task;

use std::sync::Arc;

pub use copying::Copying;
pub use induction_heads::InductionHeads;
pub use mqar::Mqar;
pub use score::{Reader, Score};
pub use sequences::{Sequences, Split};
pub use state_tracking::StateTracking;
pub use task::{Kind, Paper, Random, Sequence, Task, Unfit};

use crate::config::{ConfigError, TaskConfig};

impl From<Unfit> for crate::Error {
    fn from(unfit: Unfit) -> Self {
        Self::Argument { argument: unfit.setting, wanted: unfit.wanted, got: unfit.got }
    }
}

/// Every task.
pub static KINDS: [&Kind; 5] =
    [&copying::PLAIN, &copying::SELECTIVE, &induction_heads::KIND, &mqar::KIND, &state_tracking::KIND];

impl Kind {
    /// The task of that name.
    ///
    /// # Errors
    /// If there is none; the error lists the existing ones.
    pub fn find(name: &str) -> Result<&'static Kind, ConfigError> {
        let known = || KINDS.map(|kind| kind.name).join(", ");
        KINDS.into_iter().find(|kind| kind.name == name).ok_or_else(|| ConfigError {
            file: "config".into(),
            line: None,
            field: "task.name".into(),
            what: format!("wanted a task, got `{name}`"),
            fix: format!("give one of {}", known()),
        })
    }
}

/// The task of a config; none if it trains on text.
///
/// # Errors
/// If there is no such task, or it does not allow these sizes.
pub fn open(config: &TaskConfig) -> Result<Option<Arc<dyn Task>>, ConfigError> {
    if config.is_text() {
        return Ok(None);
    }
    let made = (Kind::find(&config.name)?.make)(config);
    made.map(Some).map_err(|unfit| ConfigError {
        file: "config".into(),
        line: None,
        field: unfit.setting.into(),
        what: format!("wanted {}, got {}", unfit.wanted, unfit.got),
        fix: format!("set it to {}, in the file or by --set {}=VALUE", unfit.wanted, unfit.setting),
    })
}

#[cfg(test)]
mod tests;
