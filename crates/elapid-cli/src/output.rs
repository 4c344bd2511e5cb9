//! What people and scripts read: aligned tables and numbers with units, or one JSON object.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::Result;
use elapid_train::progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::Value;

use crate::failure::wrong;
use crate::terminal;

/// Where and how a command prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Print one JSON object on stdout and nothing else there.
    pub(crate) json: bool,
    /// Print only errors on stderr.
    pub(crate) quiet: bool,
}

impl Output {
    /// Prints the result: `text` for people, or the object.
    pub(crate) fn result(&self, object: &Value, text: impl FnOnce() -> String) -> Result<()> {
        let mut stdout = io::stdout().lock();
        match (self.json, stdout.is_terminal()) {
            (true, _) => writeln!(stdout, "{object}")?,
            (false, true) => stdout.write_all(terminal::shown(&text()).as_bytes())?,
            (false, false) => stdout.write_all(text().as_bytes())?,
        }
        Ok(stdout.flush()?)
    }

    /// Prints a line on stderr; nothing with `--json` or `--quiet`.
    pub(crate) fn note(&self, line: impl std::fmt::Display) {
        if !self.quiet && !self.json {
            self.warn(line);
        }
    }

    /// Prints a line on stderr that belongs in a script's log too.
    pub(crate) fn warn(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            // A failed write to stderr has nowhere to be reported.
            writeln!(io::stderr(), "{}", terminal::message(&line.to_string())).ok();
        }
    }

    /// A progress bar of bytes that are read, with a message behind it.
    pub(crate) fn bytes(&self, what: &'static str) -> ProgressBar {
        let template = "{prefix} {bar:20} {decimal_bytes}/{decimal_total_bytes} {wide_msg}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar(what, 0).with_style(style)
    }

    /// A progress bar on stderr, if that is a terminal.
    pub(crate) fn bar(&self, what: &'static str, total: u64) -> ProgressBar {
        if self.quiet || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let template = match progress::is_narrow() {
            true => "{prefix} {percent} %, {eta} left",
            false => "{prefix} {wide_bar} {human_pos}/{human_len} tokens, {rate}/s, {eta} left",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // What it writes to is a line in memory.
            write!(out, "{}", number(state.per_sec())).ok();
        };
        let style = style.with_key("rate", rate);
        ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style).with_prefix(what)
    }
}

/// Whether a write failed because the reader closed the pipe (`elapid … | head`), which is not an error.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    // A named pipe, in contrast, should have been read to the end.
    let of_a_file = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(elapid::Error::File(_))));
    !of_a_file && error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}

/// The folder of a file, which is made if it is not there.
pub(crate) fn folder_of(file: &Path) -> Result<&Path> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| wrong(format!("cannot make {}: {error}", folder.display())))?;
    Ok(folder)
}

/// `1,234,567`.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three significant digits, and separators above a thousand: `0.123`, `12.3`, `12,345`.
pub(crate) fn number(x: f64) -> String {
    match x.abs() {
        _ if !x.is_finite() => "-".into(),
        a if a >= 100.0 => format!("{}{}", if x < 0.0 { "-" } else { "" }, thousands(a.round() as u64)),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        a if a >= 0.001 || a == 0.0 => format!("{x:.3}"),
        _ => format!("{x:.2e}"),
    }
}

/// A number with a decimal prefix before its unit: `517 MB`, `1.30 GFLOP`.
pub(crate) fn scaled(x: f64, unit: &str) -> String {
    const PREFIXES: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match PREFIXES.iter().find(|(size, _)| x.abs() >= *size) {
        Some((size, prefix)) => format!("{} {prefix}{unit}", number(x / size)),
        None => format!("{} {unit}", if x.fract() == 0.0 { format!("{x}") } else { number(x) }),
    }
}

/// `517 MB`.
pub(crate) fn bytes(n: u64) -> String {
    scaled(n as f64, "B")
}

/// `12.3 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{} %", number(100.0 * share))
}

/// Lines of a label and its value, the values aligned.
pub(crate) fn pairs<L: AsRef<str>>(lines: &[(L, String)]) -> String {
    let width = lines.iter().map(|(label, _)| label.as_ref().chars().count()).max().unwrap_or(0);
    lines.iter().map(|(label, value)| format!("{:width$}  {value}\n", label.as_ref())).collect()
}

/// A table with a heading. Columns whose heading begins with `>` are right-aligned.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let titles: Vec<&str> = heading.iter().map(|title| title.trim_start_matches('>')).collect();
    let width = |i: usize| {
        let cells = rows.iter().map(|row| row[i].chars().count());
        cells.chain([titles[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells = cells.zip(heading).zip(&widths).map(|((cell, title), &width)| {
            if title.starts_with('>') { format!("{cell:>width$}") } else { format!("{cell:width$}") }
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(&mut titles.iter().copied());
    text += &format!("{}\n", "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len().max(1) - 1)));
    rows.iter().for_each(|row| text += &line(&mut row.iter().map(String::as_str)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let written = [0, 7, 999, 1000, 1_234_567].map(thousands);
        assert_eq!(written, ["0", "7", "999", "1,000", "1,234,567"]);
        let written = [0.0, 0.12345, 1.234, 12.34, 123.6, 12345.0, -1234.0, f64::NAN].map(number);
        assert_eq!(written, ["0.000", "0.123", "1.23", "12.3", "124", "12,345", "-1,234", "-"]);
        assert_eq!([0, 12, 1500, 516_720_000].map(bytes), ["0 B", "12 B", "1.50 kB", "517 MB"]);
        assert_eq!(percent(0.1234), "12.3 %");
    }

    #[test]
    fn columns_are_aligned() {
        assert_eq!(pairs(&[("a", "1".into()), ("bcd", "2".into())]), "a    1\nbcd  2\n");
        let rows = [vec!["x".into(), "1".into()], vec!["yyyy".into(), "1,000".into()]];
        assert_eq!(table(&["name", ">n"], &rows), "name      n\n-----------\nx         1\nyyyy  1,000\n");
    }
}
