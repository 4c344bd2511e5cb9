//! PyTorch's RNN, LSTM and GRU in two layers, and the sLSTM layer of xLSTM.

use anyhow::{Result, ensure};
use elapid::formats::stored::{Stored, file};
use elapid::layers::{LayerConfig, gru, lstm, rnn, slstm};
use elapid::settings::Size;

use super::subject::{Class, Keys, Subject};

pub(super) const RNN: Class = Class {
    matches: |source, _| source.starts_with("torch.nn.RNN "),
    subject: |keys| torch(LayerConfig::rnn(rnn::Settings::default()), keys),
    also: None,
};
pub(super) const LSTM: Class = Class {
    matches: |source, _| source.starts_with("torch.nn.LSTM "),
    subject: |keys| torch(LayerConfig::lstm(lstm::Settings::default()), keys),
    also: None,
};
pub(super) const GRU: Class = Class {
    matches: |source, _| source.starts_with("torch.nn.GRU "),
    subject: |keys| torch(LayerConfig::gru(gru::Settings::default()), keys),
    also: None,
};
pub(super) const SLSTM: Class =
    Class { matches: |source, _| source.contains("sLSTMLayer"), subject: xlstm, also: None };

/// The parameters of two layers, as [`Subject`] names them, and PyTorch's.
const PARAMS: [(&str, &str); 8] = [
    ("layers.0.mixer.in_proj.weight", "weight_ih_l0"),
    ("layers.0.mixer.in_proj.bias", "bias_ih_l0"),
    ("layers.0.mixer.recurrent.weight", "weight_hh_l0"),
    ("layers.0.mixer.recurrent.bias", "bias_hh_l0"),
    ("layers.1.mixer.in_proj.weight", "weight_ih_l1"),
    ("layers.1.mixer.in_proj.bias", "bias_ih_l1"),
    ("layers.1.mixer.recurrent.weight", "weight_hh_l1"),
    ("layers.1.mixer.recurrent.bias", "bias_hh_l1"),
];

fn torch(layer: LayerConfig, keys: &mut Keys) -> Result<Subject> {
    keys.size("b")?;
    keys.size("l")?;
    let (input, d, layers) = (keys.size("input_size")?, keys.size("hidden_size")?, keys.size("num_layers")?);
    ensure!(input <= d && layers == 2, "config: wanted two layers at least as wide as their input");
    Ok(Subject { layer, d, params: PARAMS.map(|(name, theirs)| (name, file(theirs))).into(), start: 0, norm: None })
}

fn xlstm(keys: &mut Keys) -> Result<Subject> {
    keys.size("b")?;
    keys.size("l")?;
    let (d, heads, k) = (keys.size("d")?, keys.size("heads")?, keys.size("conv1d_kernel_size")?);
    let settings = slstm::Settings { heads: Size::new(heads), d_conv: Size::new(k), ..slstm::Settings::default() };
    let cell = |name: &str| -> Stored { file(format!("slstm_cell.{name}")) };
    // The layer names i and f crosswise.
    let params = vec![
        ("conv1d.weight", file("conv1d.conv.weight")),
        ("conv1d.bias", file("conv1d.conv.bias")),
        ("i_proj.weight", file("fgate.weight")),
        ("f_proj.weight", file("igate.weight")),
        ("z_proj.weight", file("zgate.weight")),
        ("o_proj.weight", file("ogate.weight")),
        ("recurrent.weight", cell("_recurrent_kernel_")),
        ("recurrent.bias", cell("_bias_")),
        ("norm.weight", file("group_norm.weight")),
    ];
    Ok(Subject { layer: LayerConfig::slstm(settings), d, params, start: 0, norm: None })
}
