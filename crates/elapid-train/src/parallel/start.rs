//! What ranks do before training: check that they match, and start from the same values.

use std::sync::Arc;

use elapid::{Device, LanguageModel};
use elapid_kernels::cuda::nccl::{self, Communicator};
use elapid_kernels::cuda::{Buffer, Gpu};
use elapid_kernels::os;

use super::Group;
use crate::config::TrainConfig;
use crate::optim::AdamW;
use crate::resume::Position;
use crate::{Error, Result};

/// Runs `f` on rank 0, then on the first rank of every other host, then on all others, so that files which the first writes
/// to a shared directory are there for the rest.
pub(crate) fn in_turn<R>(group: &Group, mut f: impl FnMut() -> Result<R>) -> Result<R> {
    let world = group.world();
    let turn = match (world.rank, world.local_rank) {
        (0, _) => 0,
        (_, 0) => 1,
        _ => 2,
    };
    let mut done = None;
    for now in 0..3 {
        if now == turn {
            done = Some(f()?);
        }
        group.barrier()?;
    }
    match done {
        Some(done) => Ok(done),
        None => unreachable!("every rank has its turn"),
    }
}

/// Checks that all ranks have the same data and settings, each on its own GPU.
pub(crate) fn check(
    group: &Group,
    config: &TrainConfig,
    tokens: u64,
    model: &LanguageModel,
    device: Device,
) -> Result<()> {
    let mut settings = config.clone();
    // Paths of files may differ between hosts.
    settings.output = Default::default();
    settings.data.cache = String::new();
    let place = match device {
        Device::Cpu => "the CPU".to_owned(),
        Device::Cuda(gpu) => format!("{} of {}", nccl::bus_id(gpu).map_err(elapid::Error::from)?, host()),
    };
    let card = format!(
        "elapid {}\n{} tokens of text\non {}\n{}\n{place}",
        env!("CARGO_PKG_VERSION"),
        tokens,
        if device == Device::Cpu { "the CPU" } else { "GPUs" },
        settings.to_toml()?
    );
    let cards = group.gather(card.as_bytes())?;
    let cards: Vec<String> = cards.iter().map(|card| String::from_utf8_lossy(card).into_owned()).collect();
    compare(&cards)?;
    if device == Device::Cpu {
        // All gradients and a loss.
        group.allow_values(model.params().count() + 1);
    }
    group.barrier()
}

/// A unique name of this host, as far as the system provides one.
fn host() -> String {
    format!("host {}", os::machine::boot().unwrap_or_default())
}

fn compare(cards: &[String]) -> Result<()> {
    let Some(first) = cards.first() else { return Ok(()) };
    for (rank, card) in cards.iter().enumerate().skip(1) {
        let (same, place) = card.rsplit_once('\n').unwrap_or((card, ""));
        let wanted = first.rsplit_once('\n').map_or("", |(same, _)| same);
        if let Some((want, got)) = wanted.lines().zip(same.lines()).find(|(want, got)| want != got) {
            let what = format!("rank {rank} has `{got}`, rank 0 `{want}`; start all ranks by the same command");
            return Err(Error::Ranks { what });
        }
        let shared = cards[..rank].iter().position(|other| other.rsplit_once('\n').is_some_and(|(_, at)| at == place));
        if let Some(other) = shared.filter(|_| place != "the CPU") {
            let what = format!(
                "rank {other} and rank {rank} have the same GPU, {place}; give each its own by LOCAL_RANK or \
                 CUDA_VISIBLE_DEVICES"
            );
            return Err(Error::Ranks { what });
        }
    }
    Ok(())
}

/// The communicator of all ranks' GPUs. It is aborted when a rank is lost, so that no rank waits for it.
pub(crate) fn connect(group: &Group, gpu: Gpu) -> Result<Arc<Communicator>> {
    let id = match group.is_first() {
        true => nccl::unique_id().map_err(elapid::Error::from)?.0.to_vec(),
        false => Vec::new(),
    };
    let id = group.broadcast(&id)?;
    let id: [u8; 128] = id.try_into().map_err(|_| Error::Ranks { what: "the id of NCCL is incomplete".into() })?;
    let world = group.world();
    let made = Communicator::new(gpu, world.rank, world.size, &nccl::Id(id)).map_err(elapid::Error::from);
    let communicator = Arc::new(made?);
    let (ended, watched) = (Arc::downgrade(&communicator), Arc::downgrade(&communicator));
    group.on_loss(move |_| {
        ended.upgrade().map(|communicator| communicator.abort());
    });
    group.watch(move || watched.upgrade().and_then(|communicator| communicator.failure()));
    Ok(communicator)
}

/// Copies the parameters, the optimiser's moments and the progress of rank 0 to every rank.
pub(crate) fn share(
    group: &Group,
    communicator: Option<&Communicator>,
    model: &mut LanguageModel,
    optimiser: &mut AdamW,
    position: &mut Position,
) -> Result<()> {
    let numbers = [position.step, position.tokens, position.seconds.to_bits()];
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let bytes = group.broadcast(&bytes)?;
    let [step, tokens, seconds] = bytes.as_chunks::<8>().0 else {
        return Err(Error::Ranks { what: "the progress of rank 0 is incomplete".into() });
    };
    (position.step, position.tokens) = (u64::from_le_bytes(*step), u64::from_le_bytes(*tokens));
    position.seconds = f64::from_bits(u64::from_le_bytes(*seconds));
    optimiser.step = position.step;
    match communicator {
        Some(communicator) => share_on_gpus(communicator, model, optimiser).map_err(Error::from)?,
        None => share_on_cpus(group, model, optimiser)?,
    }
    model.changed();
    Ok(())
}

fn share_on_gpus(communicator: &Communicator, model: &LanguageModel, optimiser: &AdamW) -> elapid::Result<()> {
    let (Some(flat), Some(means)) = (model.params().flat(), optimiser.means_on_device()) else {
        return Err(elapid::Error::Argument("wanted parameters on a GPU".into()));
    };
    let buffers: [Option<&Arc<Buffer>>; 4] = [Some(&flat.values), flat.copy.as_ref(), Some(means[0]), Some(means[1])];
    let written = nccl::Mark::new(flat.values.gpu())?;
    written.pass()?;
    communicator.after(&written)?;
    for buffer in buffers.into_iter().flatten() {
        communicator.broadcast(buffer, 0)?;
    }
    Ok(communicator.join()?)
}

fn share_on_cpus(group: &Group, model: &mut LanguageModel, optimiser: &mut AdamW) -> Result<()> {
    for (_, param) in model.params_mut().iter_mut() {
        group.broadcast_values(param.value.make_mut())?;
    }
    for (i, [mut m, mut v]) in optimiser.means()?.into_iter().enumerate() {
        group.broadcast_values(&mut m)?;
        group.broadcast_values(&mut v)?;
        optimiser.set_means(i, [m, v]).map_err(Error::from)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_differ_are_named() {
        let card = |settings: &str, place: &str| format!("elapid 1\n9 tokens\n{settings}\n{place}");
        let message = |cards: &[String]| compare(cards).err().map(|error| error.to_string()).unwrap_or_default();
        let fits = [card("batch = 4", "gpu 0"), card("batch = 4", "gpu 1"), card("batch = 4", "gpu 2")];
        assert_eq!(message(&fits), "");
        assert_eq!(message(&["a\nthe CPU".into(), "a\nthe CPU".into()]), "");
        let other = message(&[card("batch = 4", "gpu 0"), card("batch = 8", "gpu 1")]);
        assert!(other.contains("rank 1 has `batch = 8`, rank 0 `batch = 4`"), "{other}");
        let same = message(&[fits[0].clone(), fits[1].clone(), card("batch = 4", "gpu 1")]);
        assert!(same.contains("rank 1 and rank 2 have the same GPU, gpu 1"), "{same}");
    }
}
