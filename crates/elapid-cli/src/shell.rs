//! `elapid completions` and `elapid man`: what a shell and `man` know of the command line.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;
use elapid::files::atomic_write;
use serde_json::json;

use crate::output::Output;

const COMPLETIONS: &str = "\
Examples:
  elapid completions bash > ~/.local/share/bash-completion/completions/elapid
  elapid completions zsh > ~/.zfunc/_elapid
      with `fpath+=~/.zfunc` before compinit in ~/.zshrc
  elapid completions fish > ~/.config/fish/completions/elapid.fish";

const MAN: &str = "\
Examples:
  elapid man ~/.local/share/man/man1
      then `man elapid` and `man elapid-train`";

/// The shell.
#[derive(clap::Args)]
#[command(after_help = COMPLETIONS)]
pub(crate) struct Completions {
    /// bash, zsh, fish, elvish or powershell
    #[arg(value_name = "SHELL", hide_possible_values = true)]
    shell: Shell,
}

/// Where to.
#[derive(clap::Args)]
#[command(after_help = MAN)]
pub(crate) struct Man {
    /// Directory to write the pages into
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Completions {
    pub(crate) fn run(&self, mut command: Command) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "elapid", &mut script);
        Ok(io::Write::write_all(&mut io::stdout().lock(), &script)?)
    }
}

impl Man {
    pub(crate) fn run(&self, mut command: Command, output: Output) -> Result<()> {
        std::fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        command.build();
        let mut pages = Vec::new();
        page(&self.dir, &command, "elapid", &mut pages)?;
        output.result(&json!({ "pages": pages }), || format!("{} pages in {}\n", pages.len(), self.dir.display()))
    }
}

/// Writes the page of a command and those of the commands below it.
fn page(dir: &Path, command: &Command, name: &str, pages: &mut Vec<PathBuf>) -> Result<()> {
    let path = dir.join(format!("{name}.1"));
    let page = clap_mangen::Man::new(command.clone().display_name(name.to_owned())).title(name.to_owned());
    atomic_write(&path, |to| page.render(to))?;
    pages.push(path);
    let below = command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help");
    below.into_iter().try_for_each(|below| self::page(dir, below, &format!("{name}-{}", below.get_name()), pages))
}
