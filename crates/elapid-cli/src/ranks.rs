//! `elapid train` on several GPUs: starts a rank on each GPU, and runs as one.

use std::ffi::OsString;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use elapid_kernels::cuda;
use elapid_kernels::os::process;
use elapid_train::parallel::{self, Failed, Group, Launch, Secret, Timeouts, World};

use crate::failure::{Ended, wrong};
use crate::output::Output;
use crate::signals;

/// Set by [`launch`] for the processes it starts; their stdin is connected to it.
const LAUNCHED: &str = "ELAPID_LAUNCHED";
/// How long a rank may take to end by itself after another was lost.
const GRACE: Duration = Duration::from_secs(20);

/// Runs this command once on each of `gpus` GPUs, until all have ended.
pub(crate) fn launch(gpus: usize, device: &str, threads: Option<u16>) -> Result<()> {
    if World::from_env()?.is_some_and(|world| world.size > 1) {
        return Err(wrong("--gpus starts the ranks of this host itself; leave it out under torchrun or srun"));
    }
    let mut variables: Vec<(OsString, OsString)> = vec![(LAUNCHED.into(), "1".into())];
    match device {
        "auto" | "cuda" => {
            let found = cuda::count().map_err(|error| wrong(format!("--gpus {gpus}: {error}")))?;
            if found < gpus {
                return Err(wrong(format!("--gpus {gpus}: this machine has {found} that the driver can use")));
            }
        }
        "cpu" => {
            let each = thread::available_parallelism().map_or(1, |all| (all.get() / gpus).max(1));
            if threads.is_none() && std::env::var_os("RAYON_NUM_THREADS").is_none() {
                variables.push(("RAYON_NUM_THREADS".into(), each.to_string().into()));
            }
        }
        other => {
            return Err(wrong(format!(
                "--gpus {gpus} takes cuda:0 to cuda:{}, not --device {other}; choose others by CUDA_VISIBLE_DEVICES",
                gpus - 1
            )));
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    signals::stop_at_signals(&stop)?;
    let program = std::env::current_exe().context("cannot find the program that this is")?;
    let arguments = without_gpus(std::env::args_os().skip(1));
    // A little longer than a rank allows itself.
    let launch = Launch { program, arguments, variables, ranks: gpus, grace: GRACE + Duration::from_secs(10) };
    let ended = parallel::launch(&launch, &stop)?;
    match ended.failed {
        None => Ok(()),
        Some(failed) => Err(Ended { code: ended.code, text: describe(&failed) }.into()),
    }
}

/// Failures that rank 0 has not reported itself.
fn describe(failed: &Failed) -> String {
    let Failed { rank, how, crashed, said } = failed;
    let said: String = said.lines().map(|line| format!("\n  rank {rank}: {line}")).collect();
    if *rank == 0 && !crashed { String::new() } else { format!("rank {rank} ended by {how}{said}") }
}

/// The arguments of a rank.
fn without_gpus(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.peekable();
    let mut kept = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == "--gpus" {
            arguments.next();
        } else if !argument.to_string_lossy().starts_with("--gpus=") {
            kept.push(argument);
        }
    }
    kept
}

/// Joins the other ranks, if the environment says that there are several.
pub(crate) fn join(world: Option<&World>, output: Output) -> Result<Option<Arc<Group>>> {
    let Some(world) = world.filter(|world| world.size > 1) else { return Ok(None) };
    let secret = Secret::from_env()?;
    let group = Group::join(world, secret.as_ref(), Timeouts::default(), &mut |note| output.warn(note))?;
    group.on_loss(|lost| {
        // A rank that can end by itself reports the same. GPU work that waits for the lost rank may prevent that.
        thread::sleep(GRACE);
        Output { json: false, quiet: false }.warn(format_args!("error: {lost}"));
        process::end_at_once(1);
    });
    Ok(Some(group))
}

/// The GPU of a rank: the one with its local number, or the only visible one.
pub(crate) fn own_gpu(world: &World, found: usize) -> Result<usize> {
    match (world.local_rank, found) {
        (own, found) if own < found => Ok(own),
        (_, 1) => Ok(0),
        (own, found) => Err(wrong(format!(
            "rank {} is the process {own} of its host (LOCAL_RANK), which has {found} GPUs that the driver can use; \
             start one process a GPU, or use --device cpu",
            world.rank
        ))),
    }
}

/// Whether [`launch`] started this process.
pub(crate) fn is_launched() -> bool {
    std::env::var_os(LAUNCHED).is_some()
}

/// Sets `stop` when the launcher asks for it or is gone. When it asks again, or is gone after asking, the process ends.
/// Signals to this process are counted separately, as they may arrive together with the launcher's request.
pub(crate) fn stop_with_launcher(stop: &Arc<AtomicBool>) {
    if !is_launched() {
        return;
    }
    let stop = stop.clone();
    thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut asked = false;
        loop {
            let more = matches!(stdin.read(&mut [0]), Ok(1..));
            if asked {
                process::end_at_once(130);
            }
            asked = true;
            stop.store(true, Ordering::Relaxed);
            if !more {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_do_not_launch_again() {
        let arguments = |text: &str| without_gpus(text.split_whitespace().map(OsString::from));
        assert_eq!(arguments("train --gpus 4 --steps 3"), ["train", "--steps", "3"]);
        assert_eq!(arguments("--gpus=4 train --resume"), ["train", "--resume"]);
    }

    #[test]
    fn a_rank_takes_its_own_gpu() {
        let world = |local_rank| World { rank: 9, local_rank, size: 16, address: String::new(), port: 1 };
        assert_eq!(own_gpu(&world(3), 8).unwrap(), 3);
        assert_eq!(own_gpu(&world(3), 1).unwrap(), 0, "Slurm shows each task one GPU alone");
        for found in [0, 2] {
            let error = own_gpu(&world(3), found).unwrap_err().to_string();
            assert!(error.contains("LOCAL_RANK") && error.contains(&format!("{found} GPUs")), "{error}");
        }
    }

    #[test]
    fn what_rank_0_said_is_not_said_again() {
        let failed = |rank, crashed| Failed { rank, how: "exit status: 1".into(), crashed, said: "a\nb".into() };
        assert_eq!(describe(&failed(0, false)), "");
        assert!(describe(&failed(0, true)).contains("rank 0 ended"));
        assert_eq!(describe(&failed(2, false)), "rank 2 ended by exit status: 1\n  rank 2: a\n  rank 2: b");
    }
}
