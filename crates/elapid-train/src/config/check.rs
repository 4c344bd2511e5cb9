//! Checks for impossible values of the right type.

use std::fmt::Display;

use serde_json::json;

use super::{ConfigError, Mode, TrainConfig};
use crate::tasks;

/// Maximum positions of a batch, so that sizes of tensors cannot overflow.
const POSITIONS: usize = 1 << 40;

impl TrainConfig {
    /// Checks every value; errors give `file` as the file's name.
    ///
    /// # Errors
    /// The first setting with an impossible value, with a fix.
    // Long: a list with one check per setting.
    pub fn validate(&self, file: &str) -> Result<(), ConfigError> {
        let check = |holds: bool, field: &str, wanted: &str, got: &dyn Display| {
            if holds {
                return Ok(());
            }
            let what = format!("wanted {wanted}, got {got}");
            let fix = format!("set it to {wanted}, in the file or by --set {field}=VALUE");
            Err(ConfigError { file: file.to_owned(), line: None, field: field.to_owned(), what, fix })
        };
        self.check_integers(file)?;
        let model = self.model.with_any_vocabulary().validate();
        model.map_err(|error| ConfigError { file: file.to_owned(), ..error.into() })?;

        let (data, train) = (&self.data, &self.train);
        check(!data.train.is_empty(), "data.train", "at least one text", &"an empty list")?;
        check((0.0..1.0).contains(&data.val_fraction), "data.val_fraction", "0 or more, below 1", &data.val_fraction)?;
        check(data.length >= 1, "data.length", "1 or more", &data.length)?;
        check(!data.cache.is_empty(), "data.cache", "\"auto\", \"none\" or a directory", &"an empty text")?;

        for (field, value) in [("train.batch", train.batch), ("train.accumulate", train.accumulate)] {
            check(value >= 1, field, "1 or more", &value)?;
        }
        let most = POSITIONS / data.length.min(POSITIONS);
        let wanted = format!("at most {most} rows of data.length = {}", data.length);
        check(train.batch <= most, "train.batch", &wanted, &train.batch)?;
        for (field, value) in [("train.steps", train.steps), ("train.log_every", train.log_every)] {
            check(value >= 1, field, "1 or more", &value)?;
        }
        check(train.lr.is_finite() && train.lr > 0.0, "train.lr", "a number above 0", &train.lr)?;
        let range = format!("0 to train.lr, which is {}", train.lr);
        check((0.0..=train.lr).contains(&train.min_lr), "train.min_lr", &range, &train.min_lr)?;
        let most = format!("at most train.steps, which is {}", train.steps);
        let warmup = train.warmup.of(train.steps);
        check(warmup <= train.steps, "train.warmup", &most, &warmup)?;
        for (field, beta) in [("train.beta1", train.beta1), ("train.beta2", train.beta2)] {
            check((0.0..1.0).contains(&beta), field, "0 or more, below 1", &beta)?;
        }
        check(train.eps.is_finite() && train.eps > 0.0, "train.eps", "a number above 0", &train.eps)?;
        for (field, value) in [("train.weight_decay", train.weight_decay), ("train.clip", train.clip)] {
            check(value.is_finite() && value >= 0.0, field, "0 or more", &value)?;
        }
        for group in &train.group {
            let lr = group.lr;
            check(lr.is_finite() && lr >= 0.0, "train.group lr", "0 or more", &lr)?;
            check(!group.parameters.is_empty(), "train.group parameters", "a list of names", &"none")?;
        }
        let smoothing = train.label_smoothing;
        check((0.0..1.0).contains(&smoothing), "train.label_smoothing", "0 or more, below 1", &smoothing)?;
        check(
            train.patience == 0 || train.eval_every > 0,
            "train.patience",
            "0, as train.eval_every is 0",
            &train.patience,
        )?;
        let accuracy = train.stop_at_accuracy;
        check((0.0..=1.0).contains(&accuracy), "train.stop_at_accuracy", "0 to 1", &accuracy)?;
        check(train.stop_after >= 1, "train.stop_after", "1 or more", &train.stop_after)?;
        match tasks::open(&self.task).map_err(|error| ConfigError { file: file.to_owned(), ..error })? {
            None => {
                let wanted = "0, as there are answers to a task only";
                check(accuracy == 0.0, "train.stop_at_accuracy", wanted, &accuracy)?;
            }
            Some(task) => {
                task.positions(data.length).map_err(|unfit| ConfigError {
                    file: file.to_owned(),
                    line: None,
                    field: unfit.setting.into(),
                    what: format!("wanted {}, got {}", unfit.wanted, unfit.got),
                    fix: "correct it in the file, or by --length N".into(),
                })?;
                for &length in &self.task.eval_lengths {
                    let unfit = task.positions(length).err();
                    let wanted = unfit.as_ref().map_or("", |unfit| &unfit.wanted);
                    check(unfit.is_none(), "task.eval_lengths", wanted, &length)?;
                }
                check(data.mode == Mode::Windows, "data.mode", "\"windows\", as there is a task", &"\"streams\"")?;
                check(!data.pack, "data.pack", "false, as there is a task", &data.pack)?;
                let wanted = "1 or more, as a task has no end";
                check(train.eval_batches >= 1, "train.eval_batches", wanted, &train.eval_batches)?;
            }
        }
        check(!self.output.dir.as_os_str().is_empty(), "output.dir", "a directory", &"an empty text")
    }

    /// Checks that every integer fits into TOML: a run whose config cannot be written cannot be resumed.
    pub(super) fn check_integers(&self, file: &str) -> Result<(), ConfigError> {
        // Sizes of models are bounded by their types.
        let json = json!({ "data": self.data, "task": self.task, "train": self.train, "output": self.output });
        let sections = json.as_object().into_iter().flatten();
        let values = sections.flat_map(|(section, values)| {
            values.as_object().into_iter().flatten().map(move |(key, value)| (section, key, value))
        });
        for (section, key, value) in values {
            let one = std::slice::from_ref(value);
            let all = value.as_array().map_or(one, Vec::as_slice);
            if let Some(n) = all.iter().find_map(|n| n.as_u64().filter(|&n| i64::try_from(n).is_err())) {
                return Err(ConfigError {
                    file: file.to_owned(),
                    line: None,
                    field: format!("{section}.{key}"),
                    what: format!("wanted at most {}, got {n}", i64::MAX),
                    fix: "give a smaller one: config.toml cannot hold it".into(),
                });
            }
        }
        Ok(())
    }
}
