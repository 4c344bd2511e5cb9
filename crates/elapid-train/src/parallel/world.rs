//! Which rank this process is.

use crate::{Error, Result};

/// One rank of several, and the address of rank 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// Rank of this process, from 0.
    pub rank: usize,
    /// Rank among the processes of this host, from 0: the GPU that it uses.
    pub local_rank: usize,
    /// Number of processes.
    pub size: usize,
    /// The host of rank 0.
    pub address: String,
    /// The port on which rank 0 listens there.
    pub port: u16,
}

/// The default port of Slurm's ranks, one for each job.
const SLURM_PORTS: (u64, u64) = (15_000, 15_000);

impl World {
    /// From the environment: RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as `torchrun` sets them, or
    /// SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS inside `srun`, where MASTER_ADDR and MASTER_PORT may be left out. None
    /// for a single process.
    ///
    /// # Errors
    /// If some of the variables are set and others missing, or one is not a number or out of range.
    pub fn from_env() -> Result<Option<Self>> {
        Self::read(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    fn read(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let slurm = slurm(env);
        let first = |names: &[&'static str]| names.iter().find_map(|&name| Some((name, env(name)?)));
        let rank = first(if slurm { &["RANK", "SLURM_PROCID"] } else { &["RANK"] });
        let size = first(if slurm { &["WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"] } else { &["WORLD_SIZE"] });
        let ((rank_name, rank), (size_name, size)) = match (rank, size) {
            (None, None) => return Ok(None),
            (Some(rank), Some(size)) => (rank, size),
            (None, Some((_, size))) if size.trim() == "1" => return Ok(None),
            (None, Some((name, size))) => return Err(half(name, &size, "RANK")),
            (Some((name, rank)), None) => return Err(half(name, &rank, "WORLD_SIZE")),
        };
        let (rank, size): (usize, usize) = (number(rank_name, &rank)?, number(size_name, &size)?);
        if rank >= size {
            let fix = format!("ranks count from 0 to {size_name} - 1");
            return Err(wrong(format!("{rank_name} is {rank} and {size_name} is {size}"), fix));
        }
        let local_rank = match first(&["LOCAL_RANK", "SLURM_LOCALID"]) {
            Some((name, value)) => number(name, &value)?,
            None if size == 1 => 0,
            None => return Err(half(rank_name, &rank.to_string(), "LOCAL_RANK")),
        };
        let (address, port) = match (env("MASTER_ADDR"), env("MASTER_PORT")) {
            (Some(address), Some(port)) => (address.trim().to_owned(), master_port(env, &port)?),
            _ if size == 1 => ("127.0.0.1".to_owned(), 0),
            (address, port) if slurm => slurm_master(env, address, port)?,
            (None, _) => return Err(half(rank_name, &rank.to_string(), "MASTER_ADDR")),
            (_, None) => return Err(half(rank_name, &rank.to_string(), "MASTER_PORT")),
        };
        Ok(Some(Self { rank, local_rank, size, address, port }))
    }

    /// The variables to set for rank `rank` of `size` on this host.
    pub(crate) fn variables(rank: usize, size: usize, port: u16) -> [(&'static str, String); 5] {
        [
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("WORLD_SIZE", size.to_string()),
            ("MASTER_ADDR", "127.0.0.1".to_owned()),
            ("MASTER_PORT", port.to_string()),
        ]
    }
}

/// Whether `srun` started this process. The shell of a batch script has the variables of rank 0 too, but no step.
fn slurm(env: &dyn Fn(&str) -> Option<String>) -> bool {
    let step = env("SLURM_JOB_ID").is_none() || env("SLURM_STEP_ID").is_some();
    let size = env("SLURM_STEP_NUM_TASKS").or_else(|| env("SLURM_NTASKS"));
    step && env("SLURM_PROCID").is_some() && size.is_some()
}

/// MASTER_PORT, or the next port where `torchrun`'s own agent listens on it.
fn master_port(env: &dyn Fn(&str) -> Option<String>, port: &str) -> Result<u16> {
    let given: u16 = number("MASTER_PORT", port)?;
    if env("TORCHELASTIC_USE_AGENT_STORE").is_none_or(|taken| taken != "True") {
        return Ok(given);
    }
    let none =
        || wrong("MASTER_PORT is 65535, where torchrun listens".into(), "the port after it is needed too".into());
    given.checked_add(1).ok_or_else(none)
}

fn slurm_master(
    env: &dyn Fn(&str) -> Option<String>,
    address: Option<String>,
    port: Option<String>,
) -> Result<(String, u16)> {
    let nodes = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"].into_iter().find_map(env);
    let address = address.or_else(|| {
        nodes.as_deref().map(|nodes| match nodes.contains(['[', ',']) {
            true => first_host(nodes),
            // Whether all ranks are on one host, where they need no secret.
            false => "127.0.0.1".to_owned(),
        })
    });
    let rank = || env("SLURM_PROCID").unwrap_or_default();
    let address = address.ok_or_else(|| half("SLURM_PROCID", &rank(), "MASTER_ADDR"))?;
    let port = match (port, env("SLURM_JOB_ID")) {
        (Some(port), _) => number("MASTER_PORT", &port)?,
        (None, Some(job)) => {
            let job: u64 = number("SLURM_JOB_ID", &job)?;
            u16::try_from(SLURM_PORTS.0 + job % SLURM_PORTS.1).unwrap_or(u16::MAX)
        }
        (None, None) => return Err(half("SLURM_PROCID", &rank(), "MASTER_PORT")),
    };
    Ok((address, port))
}

/// The first host of Slurm's list: `gpu012` of `gpu[012-015,020],login1`.
fn first_host(nodes: &str) -> String {
    let mut host = String::new();
    let mut chars = nodes.trim().chars();
    while let Some(c) = chars.next() {
        match c {
            ',' => break,
            '[' => {
                let inside: String = chars.by_ref().take_while(|&c| c != ']').collect();
                host.extend(inside.chars().take_while(|&c| c != '-' && c != ','));
            }
            c => host.push(c),
        }
    }
    host
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    let fix = || wrong(format!("{name} is `{value}`"), "it must be a number".into());
    value.trim().parse().map_err(|_| fix())
}

fn half(set: &str, value: &str, missing: &str) -> Error {
    let fix = format!(
        "set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in every process, as torchrun does, or none of \
         them and start all GPUs of this host by --gpus N; for one GPU, unset {set}"
    );
    wrong(format!("{set} is {value} and {missing} is not set"), fix)
}

fn wrong(what: String, fix: String) -> Error {
    Error::World { what, fix }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<World>> {
        World::read(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    fn world(rank: usize, local_rank: usize, size: usize, address: &str, port: u16) -> Option<World> {
        Some(World { rank, local_rank, size, address: address.into(), port })
    }

    const TORCH: [(&str, &str); 5] =
        [("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "node7"), ("MASTER_PORT", "29500")];

    #[test]
    fn variables_of_torchrun() {
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&TORCH).unwrap(), world(5, 1, 8, "node7", 29_500));
        let agent = [&TORCH[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(read(&agent).unwrap().unwrap().port, 29_501, "torchrun itself listens at the port");
        let own = [&TORCH[..], &[("TORCHELASTIC_USE_AGENT_STORE", "False")]].concat();
        assert_eq!(read(&own).unwrap().unwrap().port, 29_500);
        assert_eq!(read(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), world(0, 0, 1, "127.0.0.1", 0));
        assert_eq!(read(&[("WORLD_SIZE", "1")]).unwrap(), None);
        for (name, value) in World::variables(3, 4, 1234) {
            assert!(TORCH.iter().any(|(n, _)| *n == name), "{name} {value}");
        }
    }

    #[test]
    fn variables_of_slurm() {
        let slurm = [("SLURM_PROCID", "3"), ("SLURM_LOCALID", "1"), ("SLURM_NTASKS", "4")];
        let master = [("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "1234")];
        assert_eq!(read(&[&slurm[..], &master].concat()).unwrap(), world(3, 1, 4, "10.0.0.1", 1234));
        let job = [("SLURM_JOB_ID", "30007"), ("SLURM_STEP_ID", "0"), ("SLURM_STEP_NODELIST", "gpu[08-09,12],x1")];
        assert_eq!(read(&[&slurm[..], &job].concat()).unwrap(), world(3, 1, 4, "gpu08", 15_007));
        let alone =
            [&slurm[..], &job[..2], &[("SLURM_STEP_NODELIST", "gpu-08"), ("SLURM_JOB_NODELIST", "gpu-[08-09]")]];
        assert_eq!(read(&alone.concat()).unwrap(), world(3, 1, 4, "127.0.0.1", 15_007), "a step on one host");
        assert_eq!(read(&[&slurm[..], &job[..1]].concat()).unwrap(), None, "the shell of a batch script");
        assert!(read(&slurm).unwrap_err().to_string().contains("MASTER_ADDR is not set"));
        // Variables of torchrun take precedence: it may run inside srun.
        assert_eq!(read(&[&slurm[..], &job, &TORCH].concat()).unwrap(), world(5, 1, 8, "node7", 29_500));
        // Variables that scripts export for PyTorch; the rank is then Slurm's.
        let exported = [&slurm[..], &job, &[("WORLD_SIZE", "4")], &master].concat();
        assert_eq!(read(&exported).unwrap(), world(3, 1, 4, "10.0.0.1", 1234));
        // A step of one task inside a larger job is a single process.
        let one = [("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0"), ("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_NTASKS", "4")];
        assert_eq!(read(&one).unwrap().unwrap().size, 1);
    }

    #[test]
    fn half_set_variables_are_named() {
        let without = |name: &str| {
            let rest: Vec<_> = TORCH.into_iter().filter(|(n, _)| *n != name).collect();
            read(&rest).unwrap_err().to_string()
        };
        for name in ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"] {
            let message = without(name);
            assert!(message.contains(&format!("{name} is not set")) && message.contains("--gpus"), "{message}");
        }
        let with = |name: &str, value: &str| {
            let mut changed = TORCH.to_vec();
            changed.retain(|(n, _)| *n != name);
            changed.push((name, value));
            read(&changed).unwrap_err().to_string()
        };
        assert!(with("RANK", "8").contains("RANK is 8 and WORLD_SIZE is 8"));
        assert!(with("RANK", "-1").contains("RANK is `-1`"));
        assert!(with("MASTER_PORT", "123456").contains("MASTER_PORT is `123456`"));
    }

    #[test]
    fn hosts_of_slurm() {
        for (nodes, first) in
            [("a1", "a1"), ("a1,b2", "a1"), ("n[001-004]", "n001"), ("n[7,9]", "n7"), ("r[1-2]n[03-04]x,y", "r1n03x")]
        {
            assert_eq!(first_host(nodes), first);
        }
    }
}
