//! `elapid inspect --trace`: values inside a model, over one sequence.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::builder::RangedU64ValueParser;
use elapid::Layout;
use elapid::memory::Needs;
use elapid::trace::{DELTA, Trace};
use elapid::{LanguageModel, Tensor};
use elapid_train::config::TrainConfig;
use elapid_train::plot::{self, Look, Scale, Series};
use elapid_train::tasks::{self, Kind, Sequences, Split};
use serde_json::{Value, json};

use crate::failure::wrong;
use crate::model::{ModelArgument, Place};
use crate::output::{Output, folder_of, number, table, thousands};
use crate::score;

/// The low and the high quantile over channels.
const QUANTILES: (f64, f64) = (0.5, 0.9);

/// The value to trace, and the sequence.
#[derive(clap::Args)]
pub(crate) struct TraceArguments {
    /// Instead show a value inside the model over one sequence: delta, the step sizes of every layer
    #[arg(long, value_name = "NAME", value_parser = [DELTA], conflicts_with = "model_size")]
    trace: Option<String>,
    /// Read a sequence of this task [default: selective-copying]
    #[arg(long, value_name = "NAME", requires = "trace")]
    task: Option<String>,
    /// Random seed of the sequence
    #[arg(long, value_name = "N", requires = "trace", default_value_t = 1)]
    seed: u64,
    /// Length of the sequence [default: the training length]
    #[arg(long, value_name = "N", requires = "trace",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    length: Option<usize>,
    /// Read this text instead of a sequence of a task
    #[arg(long, value_name = "TEXT", requires = "trace", conflicts_with_all = ["task", "seed", "length"])]
    prompt: Option<String>,
    /// Write the picture to STEM.svg and STEM.png
    #[arg(long, value_name = "STEM", requires = "trace", default_value = "delta", hide_default_value = true)]
    picture: PathBuf,
}

/// The role of a position in the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It must be remembered.
    Data,
    Noise,
    /// An answer is given there.
    Asked,
    /// There is no task.
    Text,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Data => "data",
            Role::Noise => "noise",
            Role::Asked => "asked",
            Role::Text => "text",
        }
    }
}

/// What is read.
struct Reading {
    what: String,
    tokens: Vec<u32>,
    roles: Vec<Role>,
}

/// One layer: over channels the mean and two quantiles, at each position.
struct Layer {
    mean: Vec<f64>,
    low: Vec<f64>,
    high: Vec<f64>,
}

impl TraceArguments {
    pub(crate) fn asked(&self) -> bool {
        self.trace.is_some()
    }
}

pub(crate) fn run(arguments: &TraceArguments, model: &ModelArgument, place: Place, output: Output) -> Result<()> {
    let loaded = model.load_on(place, output)?;
    let reading = match &arguments.prompt {
        None => task(arguments, model)?,
        Some(text) => {
            let tokens = loaded.need_tokenizer("a text")?.encode_prompt(text)?;
            Reading { what: "a text".into(), roles: vec![Role::Text; tokens.len()], tokens }
        }
    };
    if reading.tokens.is_empty() {
        return Err(wrong("--prompt: the text is empty"));
    }
    loaded.check_ids(&reading.tokens)?;
    let layers = layers(&loaded.model, &reading.tokens)?;
    if let Some(i) = layers.iter().position(|layer| !layer.mean.iter().all(|x| x.is_finite())) {
        return Err(loaded.not_finite(&format!("Δ of layer {i} is"), &reading.tokens)?);
    }
    let stem = &arguments.picture;
    draw(stem, &reading, &layers)?;
    let object = json!({
        "trace": DELTA,
        "model": loaded.name,
        "read": reading.what,
        "picture": stem.with_extension("svg"),
        "tokens": reading.tokens,
        "roles": reading.roles.iter().map(|role| role.name()).collect::<Vec<_>>(),
        "layers": layers.iter().map(|layer| layer.object(&reading)).collect::<Vec<_>>(),
    });
    output.result(&object, || {
        let rows: Vec<Vec<String>> = layers.iter().enumerate().map(|(i, layer)| layer.cells(i, &reading)).collect();
        format!(
            "Δ over {}, {}: mean of the channels\n\n{}\n{} and {}\n",
            reading.what,
            loaded.name,
            table(&HEADING, &rows),
            stem.with_extension("svg").display(),
            stem.with_extension("png").display(),
        )
    })
}

/// The first sequence that `eval` would read with this seed.
fn task(arguments: &TraceArguments, model: &ModelArgument) -> Result<Reading> {
    let kind = Kind::find(arguments.task.as_deref().unwrap_or("selective-copying"))?;
    let trained = score::trained(kind, model.model.as_deref())?;
    let config = trained.map_or_else(|| TrainConfig::parse(kind.settings, kind.name), Ok)?;
    let Some(task) = tasks::open(&config.task)? else { unreachable!("its name is that of a task") };
    let length = arguments.length.unwrap_or(config.data.length);
    let sequences = Sequences::new(task.clone(), length, arguments.seed, Split::Test)
        .map_err(|unfit| wrong(format!("--length: wanted {}, got {}", unfit.wanted, unfit.got)))?;
    // A token and its role.
    Needs::default().and("the sequence", sequences.positions() as u128, 5, "--length").check()?;
    let role = |(token, target): (u32, i32)| match target {
        0.. => (token, Role::Asked),
        _ if task.is_data(token) => (token, Role::Data),
        _ => (token, Role::Noise),
    };
    let (tokens, roles) = sequences.sequence(0).map(role).unzip();
    Ok(Reading { what: format!("{} at length {}", kind.name, thousands(length as u64)), tokens, roles })
}

fn layers(model: &LanguageModel, tokens: &[u32]) -> Result<Vec<Layer>> {
    model.needs_of_pass(1, tokens.len(), "--length, or give a shorter --prompt").check_on(model.device())?;
    let trace = Arc::new(Trace::of(DELTA));
    let cx = model.inference(Layout::new(1, tokens.len())).traced(&trace);
    model.hidden(&cx, tokens, &model.zero_state(1)?, false)?;
    Ok(trace.take().iter().map(Layer::new).collect())
}

impl Layer {
    fn new(delta: &Tensor) -> Self {
        let mut layer = Self { mean: Vec::new(), low: Vec::new(), high: Vec::new() };
        for channels in delta.as_slice().chunks(delta.cols()) {
            let mut sorted: Vec<f64> = channels.iter().map(|&x| f64::from(x)).collect();
            sorted.sort_by(f64::total_cmp);
            let quantile = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
            layer.mean.push(sorted.iter().sum::<f64>() / sorted.len() as f64);
            layer.low.push(quantile(QUANTILES.0));
            layer.high.push(quantile(QUANTILES.1));
        }
        layer
    }

    /// Mean over the positions of a role, if there are any.
    fn at(&self, role: Role, reading: &Reading) -> Option<f64> {
        let those = self.mean.iter().zip(&reading.roles).filter(|(_, r)| **r == role);
        let (sum, count) = those.fold((0.0, 0.0), |(sum, count), (mean, _)| (sum + mean, count + 1.0));
        (count > 0.0).then(|| sum / count)
    }

    fn ratio(&self, reading: &Reading) -> Option<f64> {
        Some(self.at(Role::Data, reading)? / self.at(Role::Noise, reading)?)
    }

    fn object(&self, reading: &Reading) -> Value {
        json!({
            "at_data": self.at(Role::Data, reading),
            "at_noise": self.at(Role::Noise, reading),
            "data_to_noise": self.ratio(reading),
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
        })
    }

    fn cells(&self, i: usize, reading: &Reading) -> Vec<String> {
        let mean = |positions: &[f64]| number(positions.iter().sum::<f64>() / positions.len() as f64);
        let cell = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
        vec![
            i.to_string(),
            cell(self.at(Role::Data, reading)),
            cell(self.at(Role::Noise, reading)),
            cell(self.ratio(reading)),
            mean(&self.mean),
            mean(&self.low),
            mean(&self.high),
        ]
    }
}

const HEADING: [&str; 7] =
    [">layer", ">at data", ">at noise", ">data / noise", ">everywhere", ">half of the channels below", ">90 % below"];

/// One line per layer, its quantiles in a pale colour, and dots at data.
fn draw(stem: &std::path::Path, reading: &Reading, layers: &[Layer]) -> Result<()> {
    let points = |values: &[f64]| values.iter().enumerate().map(|(t, &x)| (t as f64, x)).collect::<Vec<_>>();
    let mut series = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        // One name for all of them.
        let name =
            if i == 0 { format!("median and {:.0} % of the channels", 100.0 * QUANTILES.1) } else { String::new() };
        for (values, name) in [(&layer.low, String::new()), (&layer.high, name)] {
            series.push(Series { name, points: points(values), look: Look::Thin, colour: i, ..Series::default() });
        }
        let name = format!("layer {i}");
        series.push(Series { name, points: points(&layer.mean), colour: i, last_value: true, ..Series::default() });
        // A gap after each, so that they are not joined.
        let data = points(&layer.mean).into_iter().zip(&reading.roles).filter(|(_, role)| **role == Role::Data);
        let dots: Vec<(f64, f64)> = data.flat_map(|(point, _)| [point, (point.0, f64::NAN)]).collect();
        if !dots.is_empty() {
            let name = format!("layer {i} at data");
            series.push(Series { name, points: dots, look: Look::Dots, colour: i, ..Series::default() });
        }
    }
    let options = plot::Options {
        title: format!("Δ over {}", reading.what),
        x_label: "position".into(),
        y_label: "Δ, mean over channels".into(),
        y: Scale::Log,
        ..plot::Options::default()
    };
    let chart = plot::line_chart(&series, &options)?;
    let name = stem.file_name().ok_or_else(|| wrong("--picture: wanted a file's name without its extension"))?;
    Ok(chart.save(folder_of(stem)?, &name.to_string_lossy())?)
}
