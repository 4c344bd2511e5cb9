//! Starting from an existing model: its weights, sizes and tokenizer.

use std::path::Path;

use elapid::checkpoint::Checkpoint;
use elapid::tokenizer::{Tokenizer, TokenizerError};

use super::Start;
use crate::config::{ConfigError, ModelConfig, TrainConfig};
use crate::tasks;
use crate::{Error, Result};

/// Opens the model of `model.from`, if a new run starts from one, and puts its settings into the config. A resumed run has
/// its own weights and no longer needs that model.
///
/// # Errors
/// If the model cannot be opened, is in the output directory, or contradicts the config.
pub(super) fn open(config: &mut TrainConfig, start: Start) -> Result<Option<Checkpoint>> {
    if config.model.from.is_empty() {
        return Ok(None);
    }
    let from = Path::new(&config.model.from).to_owned();
    if start == Start::Resume {
        let given = ModelConfig { from: String::new(), ..config.model.clone() };
        if given == ModelConfig::default()
            && let Ok(checkpoint) = Checkpoint::open(&from)
        {
            settle(config, &from, &checkpoint)?;
        }
        return Ok(None);
    }
    check_place(&from, &config.output.dir)?;
    let checkpoint = Checkpoint::open(&from).map_err(elapid::Error::from)?;
    settle(config, &from, &checkpoint)?;
    Ok(Some(checkpoint))
}

fn settle(config: &mut TrainConfig, from: &Path, checkpoint: &Checkpoint) -> Result<()> {
    config.take_settings_of(&checkpoint.config, "the settings")?;
    if config.task.is_text() {
        settle_tokenizer(config, from)?;
    }
    let (ids, field) = match tasks::open(&config.task)? {
        Some(task) => (task.vocab_size(), "task.vocab"),
        None => (config.data.open_tokenizer()?.vocab_size(), "data.tokenizer"),
    };
    let most = checkpoint.config.padded_vocab_size();
    if ids <= most {
        Ok(())
    } else {
        Err(unfit(field, format!("it has {ids} token ids, and {} has {most}", from.display())))
    }
}

/// Ids have the meaning that the model was trained with, so its own tokenizer is used if it has one.
fn settle_tokenizer(config: &mut TrainConfig, from: &Path) -> Result<()> {
    let own = match Tokenizer::open(from) {
        Ok(own) => own,
        Err(TokenizerError::Missing { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let given = config.data.open_tokenizer()?;
    if given.fingerprint() == own.fingerprint() {
        return Ok(());
    }
    if config.data.tokenizer != "byte" {
        return Err(unfit("data.tokenizer", format!("{} has another tokenizer", from.display())));
    }
    config.data.tokenizer = from.display().to_string();
    Ok(())
}

fn unfit(field: &str, what: String) -> Error {
    let fix = "leave it out to use that model's own, or start from another model".to_owned();
    ConfigError { file: "the settings".into(), line: None, field: field.into(), what, fix }.into()
}

/// A new run never overwrites the model that it starts from.
fn check_place(from: &Path, output: &Path) -> Result<()> {
    let (Ok(from), Ok(place)) = (from.canonicalize(), output.canonicalize()) else { return Ok(()) };
    if !from.starts_with(&place) {
        return Ok(());
    }
    let reason =
        format!("{} is there, which the run begins from; choose another directory by --output", from.display());
    Err(Error::Directory { path: output.to_owned(), reason })
}
