//! Progress of a run: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{FormattedDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The figures of a bar or a line.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Status {
    /// Steps done.
    pub step: u64,
    /// Training loss in nats per token, mean since the last record.
    pub loss: f64,
    /// Loss on held-out text, if it was just measured.
    pub val_loss: Option<f64>,
    /// Share of right answers of a task, if it was just measured.
    pub accuracy: Option<f64>,
    /// Tokens per second.
    pub tokens_per_second: f64,
}

/// Shows the progress of training on stderr: a bar if that is a terminal, else a line for each report with `log`, or nothing
/// at all.
#[derive(Debug)]
pub struct Progress {
    form: Form,
    steps: u64,
    first: u64,
    began: Instant,
}

#[derive(Debug)]
enum Form {
    Bar(ProgressBar),
    Lines,
    Quiet,
}

impl Progress {
    /// Progress from step `first` (0, or where a run resumes) to `steps`.
    pub fn new(first: u64, steps: u64, quiet: bool) -> Self {
        let form = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Form::Quiet,
            (false, false) => Form::Lines,
            (false, true) => Form::Bar(bar(steps).with_position(first)),
        };
        Self { form, steps, first, began: Instant::now() }
    }

    /// Reports a step. A bar always shows it; a line is printed only with `log`.
    pub fn report(&self, status: &Status, log: bool) {
        match &self.form {
            Form::Bar(bar) => {
                bar.set_position(status.step);
                bar.set_message(figures(status, self.left(status.step)));
                if let Some(val) = status.val_loss {
                    let accuracy = accuracy(status);
                    bar.println(format!("step {}: validation loss {val:.4}{accuracy}", status.step));
                }
            }
            Form::Lines if log || status.val_loss.is_some() => {
                let figures = figures(status, self.left(status.step));
                self.note(&format!("step {}/{}  {figures}", status.step, self.steps));
            }
            Form::Lines | Form::Quiet => {}
        }
    }

    /// Prints a line without disturbing the bar.
    pub fn note(&self, text: &str) {
        match &self.form {
            Form::Bar(bar) => bar.println(text),
            // A closed stderr is no reason to end a run.
            Form::Lines => writeln!(io::stderr(), "{text}").unwrap_or_default(),
            Form::Quiet => {}
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }

    /// The remaining time, from the mean of this run's steps.
    fn left(&self, step: u64) -> Option<Duration> {
        let done = step.checked_sub(self.first).filter(|&done| done > 0)?;
        let left = self.steps.saturating_sub(step) as f64 / done as f64;
        Duration::try_from_secs_f64(self.began.elapsed().as_secs_f64() * left).ok()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Whether the terminal of stderr has too few columns for a bar beside the figures.
pub fn is_narrow() -> bool {
    Term::stderr().size().1 < 80
}

fn bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(8));
    // A message is cut at the end of its row.
    let template = match is_narrow() {
        true => "{pos}/{len}  {wide_msg}",
        false => "{bar:24.cyan/dim} step {pos}/{len}  {wide_msg}",
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("━╸─")),
        Err(_) => bar,
    }
}

fn figures(status: &Status, left: Option<Duration>) -> String {
    let mut text = format!("loss {:.4}", status.loss);
    if let Some(val) = status.val_loss {
        text += &format!("  validation {val:.4}{}", accuracy(status));
    }
    text += &format!("  {} tokens/s", thousands(status.tokens_per_second));
    if let Some(left) = left.filter(|left| !left.is_zero()) {
        text += &format!("  {} left", FormattedDuration(left));
    }
    text
}

fn accuracy(status: &Status) -> String {
    status.accuracy.map_or(String::new(), |share| format!("  accuracy {:.2} %", 100.0 * share))
}

/// 1234567 as 1,234,567.
fn thousands(x: f64) -> String {
    let digits = format!("{:.0}", x.max(0.0));
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (x, text) in [(0.0, "0"), (999.4, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567"), (-5.0, "0")] {
            assert_eq!(thousands(x), text);
        }
    }

    #[test]
    fn figures_of_a_line() {
        let status =
            Status { step: 10, loss: 2.345_67, val_loss: Some(2.5), accuracy: None, tokens_per_second: 12_345.0 };
        let text = figures(&status, Some(Duration::from_secs(90)));
        assert_eq!(text, "loss 2.3457  validation 2.5000  12,345 tokens/s  00:01:30 left");
        let status = Status { accuracy: Some(0.5), ..status };
        assert_eq!(figures(&status, None), "loss 2.3457  validation 2.5000  accuracy 50.00 %  12,345 tokens/s");
        assert_eq!(figures(&Status::default(), None), "loss 0.0000  0 tokens/s");
    }

    #[test]
    fn time_left_counts_from_where_it_resumed() {
        let progress =
            Progress { form: Form::Quiet, steps: 100, first: 50, began: Instant::now() - Duration::from_secs(10) };
        assert_eq!(progress.left(50), None);
        let left = progress.left(75).unwrap().as_secs_f64();
        assert!((left - 10.0).abs() < 0.5, "{left}");
        assert_eq!(progress.left(200), Some(Duration::ZERO));
        progress.report(&Status::default(), true);
        progress.note("quiet");
        progress.finish();
    }
}
