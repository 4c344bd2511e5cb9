use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::names::Config;
use super::stored::{Stored, StoredError};
use super::{FORMATS, Format};
use crate::config::ModelConfig;

/// Shape and bytes of every tensor of a file.
type File = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn layout(config: &Map<String, Value>) -> &'static Format {
    // The original layout has no model_type.
    let Some(kind) = config.get("model_type") else { return &super::state_spaces::FORMAT };
    FORMATS.iter().find(|layout| kind == layout.model_type && (layout.is)(config)).unwrap()
}

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap()
}

/// The shape that an expression gives for the tensors of a file: a tensor that is reshaped is flat here.
fn shape(stored: &Stored, of: &dyn Fn(&str) -> Vec<usize>) -> Vec<usize> {
    match stored {
        Stored::File { name, shape: None } => of(name),
        Stored::File { shape: Some(there), .. } => vec![there.iter().product()],
        Stored::Rows(parts) => {
            let mut first = shape(&parts[0].1, of);
            first[0] = parts.iter().map(|(rows, _)| rows).sum();
            first
        }
        Stored::Stack(parts) => [&[parts.len()][..], &shape(&parts[0], of)].concat(),
        Stored::Transposed(of_) => {
            let mut there = shape(of_, of);
            let last = there.len() - 1;
            there.swap(last - 1, last);
            there
        }
        Stored::Viewed { shape, .. } => shape.clone(),
        Stored::Absent => Vec::new(),
        Stored::Grouped { of: of_, .. } | Stored::Turned { of: of_, .. } => shape(of_, of),
    }
}

/// Every tensor of the file is used once or ignored, with the shape that it has; gives elapid's tensors.
fn map(config: &Map<String, Value>, shapes: &BTreeMap<String, Vec<usize>>) -> Vec<(String, Vec<usize>, Stored)> {
    let layout = layout(config);
    let of = |name: &str| shapes.get(name).unwrap_or_else(|| panic!("no tensor {name} in the file")).clone();
    let mut unused: BTreeMap<_, _> = shapes.iter().filter(|(name, _)| !(layout.ignores)(name)).collect();
    let mut all: Vec<(String, Vec<usize>, Stored)> = Vec::new();
    for (ours, stored) in (layout.tensors)(&Config(config)).unwrap().0 {
        let shape = shape(&stored, &of);
        for (name, there) in stored.files(&shape).unwrap_or_else(|error| panic!("{ours}: {error}")) {
            assert_eq!(there, of(name), "{ours}: {name}");
            assert!(unused.remove(&name.to_owned()).is_some(), "{name} is used twice");
        }
        assert!(all.iter().all(|(other, ..)| *other != ours), "{ours} twice");
        all.push((ours, shape, stored));
    }
    assert!(unused.is_empty(), "not used: {unused:?}");
    all
}

/// A model's name, its configuration, and its tensors' shapes.
type Fixture = (String, Map<String, Value>, BTreeMap<String, Vec<usize>>);

fn fixtures() -> Vec<Fixture> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats");
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let mut file = object(&fs::read_to_string(&path).unwrap());
            let tensors = serde_json::from_value(file.remove("tensors").unwrap()).unwrap();
            let config = serde_json::from_value(file.remove("config").unwrap()).unwrap();
            all.push((path.file_stem().unwrap().to_string_lossy().into_owned(), config, tensors));
        }
    }
    all
}

/// The names and shapes of a small model of each format, as its own library writes them.
#[test]
fn every_tensor_of_every_format_has_its_place() {
    let fixtures = fixtures();
    for layout in FORMATS {
        let known = |(_, config, _): &Fixture| config["model_type"] == layout.model_type && (layout.is)(config);
        assert!(fixtures.iter().any(known), "no fixture of {}", layout.model_type);
    }
    for (name, config, shapes) in &fixtures {
        println!("{name}");
        map(config, shapes);
    }
}

/// What is read is written back bit for bit, for real tensors: those of the folders in the directory that
/// `ELAPID_GOLDEN_FORMATS` names, else of the models in `golden/`.
#[test]
fn tensors_are_written_back_bit_for_bit() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let dir = std::env::var_os("ELAPID_GOLDEN_FORMATS").map_or(golden, Into::into);
    let mut models = 0;
    for folder in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let (Ok(config), Ok(bytes)) =
            (fs::read_to_string(folder.join("config.json")), fs::read(folder.join("model.safetensors")))
        else {
            continue;
        };
        println!("{}", folder.display());
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let file: File = parsed
            .iter()
            .map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), view.data().to_vec())))
            .collect();
        let shapes = file.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect();
        let mut back = File::new();
        let stored = |(.., stored): &(String, Vec<usize>, Stored)| *stored != Stored::Absent;
        for (ours, shape, stored) in map(&object(&config), &shapes).into_iter().filter(stored) {
            let words = |bytes: &[u8]| bytes.as_chunks::<4>().0.to_vec();
            let values = stored.read(&shape, &mut |name, _| Ok::<_, StoredError>(words(&file[name].1))).unwrap();
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{ours}");
            let mut put = |name: &str, shape: &[usize], values: Cow<'_, [[u8; 4]]>| {
                back.insert(name.to_owned(), (shape.to_vec(), values.concat()));
                Ok::<_, StoredError>(())
            };
            stored.write(&shape, &values, &mut put).unwrap();
        }
        assert!(back.iter().all(|(name, tensor)| file[name] == *tensor));
        models += 1;
    }
    assert!(models >= 2, "{models} models");
}

/// The fixtures that elapid has all layers of.
fn readable() -> Vec<Fixture> {
    let codec = |(_, config, _): &Fixture| super::table::readable(config).is_some();
    fixtures().into_iter().filter(codec).collect()
}

fn read(config: &Map<String, Value>) -> super::Described {
    super::describe(&Value::Object(config.clone()).to_string(), "config.json").unwrap()
}

/// A model of a format has just the tensors of the file, in its names and shapes.
#[test]
fn models_of_other_formats_are_built_as_their_files_are() {
    let all = readable();
    assert!(all.len() >= 6, "{}", all.len());
    for (name, config, shapes) in all {
        let described = read(&config);
        let mut files = BTreeMap::new();
        for (ours, shape) in crate::LanguageModel::outline(&described.config).unwrap() {
            let place = described.places.of(&ours);
            files.extend(place.files(&shape).unwrap().into_iter().map(|(name, shape)| (name.to_owned(), shape)));
        }
        assert_eq!(files, shapes, "{name}");
        assert_eq!(described.warnings, [""; 0], "{name}");
    }
}

/// What is read is written in the same format, and read again as the same.
// Long: one list of changes.
#[test]
fn configurations_of_other_formats_are_written_back() {
    let changes = json!({
        "llama": [
            {}, {"attention_bias": true, "mlp_bias": true}, {"tie_word_embeddings": true}, {"head_dim": 10},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"hidden_act": "gelu"},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8, "low_freq_factor": 1,
                "high_freq_factor": 4, "original_max_position_embeddings": 8192}},
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4, "attention_factor": 1.5,
                "beta_fast": 16, "beta_slow": 2, "original_max_position_embeddings": 64, "truncate": false}},
            {"num_key_value_heads": null}, {"head_dim": null},
        ],
        "mistral": [{}],
        "qwen2": [
            {}, {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": true, "sliding_window": 9},
            {"layer_types": null, "use_sliding_window": true, "sliding_window": 9, "max_window_layers": 0},
            {"tie_word_embeddings": true},
        ],
        "gpt2": [{}, {"n_inner": 30}, {"scale_attn_weights": false}, {"activation_function": "relu"}],
        "gpt_neox": [
            {}, {"use_parallel_residual": false}, {"attention_bias": false},
            {"rope_parameters": null, "rotary_pct": 0.5, "rotary_emb_base": 300},
        ],
        "mixtral": [
            {}, {"num_experts_per_tok": 1}, {"sliding_window": 5},
            {"output_router_logits": true, "router_aux_loss_coef": 0.02},
        ],
        "qwen2_moe": [{}, {"mlp_only_layers": []}, {"norm_topk_prob": true}, {"qkv_bias": false}],
        "jamba": [
            {}, {"num_experts": 1, "num_experts_per_tok": 1}, {"num_hidden_layers": 4}, {"attn_layer_offset": 0},
            {"expert_layer_period": 1, "expert_layer_offset": 0}, {"mamba_proj_bias": true, "mamba_conv_bias": false},
            {"output_router_logits": true, "router_aux_loss_coef": 0.02}, {"tie_word_embeddings": true},
        ],
        "gla": [
            {}, {"attn": null}, {"use_output_gate": false}, {"expand_k": 1.0, "expand_v": 2.0}, {"intermediate_size": null},
            {"fuse_norm": false}, {"num_kv_heads": 2}, {"hidden_ratio": null, "intermediate_size": null},
            {"attn": {"layers": [0, 2], "num_heads": 2}}, {"tie_word_embeddings": true},
        ],
        "retnet": [
            {}, {"use_output_gate": false}, {"elementwise_affine": false}, {"intermediate_size": null},
            {"attn": [{"layers": [1], "num_heads": 2, "window_size": 7}]},
        ],
        "hgrn2": [
            {}, {"use_lower_bound": false}, {"expand_ratio": 16}, {"expand_ratio": null, "num_heads": 2},
            {"attn": {"layers": [0], "num_heads": 2}},
        ],
        "linear_attn": [
            {}, {"feature_map": "elu", "norm_feature_map": true, "tie_feature_map_qk": true}, {"feature_map": "relu"},
            {"feature_map": "identity"}, {"attn": null}, {"expand_k": 0.5},
        ],
        "fla-mamba2": [
            {}, {"rmsnorm": false}, {"use_bias": false, "use_conv_bias": false}, {"D_has_hdim": false}, {"n_groups": 2},
            {"dt_limit": [0.0, {"__float__": "Infinity"}]},
        ],
        "mamba": [{}, {"use_bias": true}],
        "falcon_mamba": [{}, {"use_bias": true}, {"mixer_rms_eps": 1e-5}],
        "mamba2": [
            {}, {"use_bias": true, "use_conv_bias": false}, {"time_step_limit": [0.01, 0.5]}, {"tie_word_embeddings": true},
            {"time_step_limit": [0.0, {"__float__": "Infinity"}]}, {"rescale_prenorm_residual": false},
            {"norm_before_gate": true},
        ],
        "bamba": [
            {}, {"attn_layer_indices": [0]}, {"attn_layer_indices": []}, {"mamba_proj_bias": true}, {"mamba_d_head": "auto"},
            {"time_step_limit": [0.01, 0.5]}, {"tie_word_embeddings": true},
        ],
        "recurrent_gemma": [
            {}, {"block_types": ["recurrent"]}, {"block_types": null}, {"attention_bias": true}, {"conv1d_width": 3},
            {"logits_soft_cap": 0.0}, {"lru_width": null},
        ],
    });
    for (name, config, _) in readable() {
        let model_type = config["model_type"].as_str().unwrap().to_owned();
        let changes = changes.get(&name).unwrap_or(&changes[&model_type]);
        for change in changes.as_array().unwrap_or_else(|| panic!("no changes of {model_type}")) {
            let mut config = config.clone();
            config.extend(change.as_object().unwrap().clone());
            let first = read(&config).config;
            let written = first.to_hf_json();
            assert_eq!(written["model_type"], *model_type, "{name}: {change}");
            assert_eq!(written.get("elapid"), None, "{name}: {change}");
            assert_eq!(read(written.as_object().unwrap()).config, first, "{name}: {change}");
        }
    }
}

/// Keys as older versions of transformers wrote them say the same.
#[test]
fn older_keys_say_the_same() {
    let (llama, neox) = (fixture("llama"), fixture("gpt_neox"));
    let old = |config: &Map<String, Value>, keys: Value| {
        let mut config = config.clone();
        config.remove("rope_parameters");
        config.extend(keys.as_object().unwrap().clone());
        read(&config).config
    };
    assert_eq!(old(&llama, json!({"rope_theta": 10000, "rope_scaling": null})), read(&llama).config);
    let new = json!({"rope_parameters": {"rope_type": "llama3", "rope_theta": 9000, "factor": 4, "low_freq_factor": 1,
        "high_freq_factor": 4, "original_max_position_embeddings": 64}});
    let scaled = json!({"rope_theta": 9000, "rope_scaling": {"type": "llama3", "factor": 4, "low_freq_factor": 1,
        "high_freq_factor": 4, "original_max_position_embeddings": 64}});
    assert_eq!(old(&llama, scaled), old(&llama, new));
    assert_eq!(old(&neox, json!({"rotary_pct": 0.25, "rotary_emb_base": 10000})), read(&neox).config);
}

fn fixture(name: &str) -> Map<String, Value> {
    fixtures().into_iter().find(|(other, ..)| other == name).unwrap().1
}

/// What would make another model is refused by name.
#[test]
fn keys_that_make_another_model_are_refused() {
    for (name, key, value) in [
        ("llama", "rope_scaling", json!({"type": "dynamic", "factor": 4.0})),
        ("llama", "rope_parameters", json!({"rope_type": "longrope", "factor": 8.0})),
        ("llama", "rope_parameters", json!({"rope_type": "yarn", "factor": 8.0, "mscale": 0.7})),
        ("llama", "rope_parameters", json!({"rope_type": "default", "partial_rotary_factor": 1.5})),
        ("llama", "rope_parameters", json!([1])),
        ("llama", "sliding_window", json!(4)),
        ("llama", "hidden_act", json!("mish")),
        ("llama", "num_key_value_heads", json!(4)),
        ("llama", "qk_norm", json!(true)),
        ("mistral", "sliding_window", json!(0)),
        ("qwen2", "layer_types", json!(["full_attention"])),
        ("qwen2", "layer_types", json!(["full_attention", "linear_attention"])),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
        ("gpt2", "n_positions", json!(0)),
        ("gpt_neox", "quantization_config", json!({"bits": 4})),
        ("mamba2-tiny", "num_heads", json!(5)),
        ("mamba2-tiny", "hidden_act", json!("gelu")),
        ("mamba2-tiny", "time_step_limit", json!([0.1])),
        ("bamba", "mamba_n_heads", json!(3)),
        ("bamba", "attn_layer_indices", json!([7])),
        ("recurrent_gemma", "hidden_activation", json!("relu")),
        ("recurrent_gemma", "block_types", json!(["mamba"])),
        ("gla", "num_kv_heads", json!(1)),
        ("gla", "use_short_conv", json!(true)),
        ("gla", "clamp_min", json!(-1.0)),
        ("gla", "feature_map", json!("relu")),
        ("gla", "expand_k", json!(0.3)),
        ("gla", "attnres_block_size", json!(2)),
        ("gla", "gate_low_rank_dim", json!(8)),
        ("gla", "hidden_act", json!("powlu")),
        ("gla", "attn", json!({"layers": [3], "num_heads": 2})),
        ("gla", "attn", json!([{"layers": [1], "num_heads": 2}, {"layers": [1], "num_heads": 4}])),
        ("gla", "attn", json!({"layers": [1], "num_heads": 2, "qk_norm": true})),
        ("hgrn2", "expand_ratio", json!(5)),
        ("linear_attn", "feature_map", json!("hedgehog")),
        ("linear_attn", "tie_feature_map_qk", json!(true)),
        ("linear_attn", "norm_q", json!(true)),
        ("fla-mamba2", "num_heads", json!(5)),
        ("fla-mamba2", "A_init_range", json!([1])),
    ] {
        let mut config = fixture(name);
        config.insert(key.into(), value.clone());
        let error = super::describe(&Value::Object(config).to_string(), "dir/config.json");
        let error = error.err().unwrap_or_else(|| panic!("{name} with {key} = {value}")).to_string();
        println!("{error}");
        assert!(error.starts_with("dir/config.json: `") && error.contains(key), "{name}, {key}: {error}");
    }
    let mut config = fixture("gpt2");
    config.insert("attn_pdrop".into(), json!(0.1));
    let described = super::describe(&Value::Object(config).to_string(), "f").unwrap();
    assert!(described.warnings.len() == 1 && described.warnings[0].contains("attn_pdrop"), "{:?}", described.warnings);
}

/// Rates of dropout are read and written, and a rate that a format has no key for is kept beside its keys.
#[test]
fn rates_of_dropout_come_back() {
    let back = |config: &ModelConfig| {
        let json = config.to_hf_json();
        let (back, warnings) = ModelConfig::parse(&json.to_string(), "f").unwrap();
        assert!(back == *config && warnings.is_empty(), "{warnings:?}");
        json
    };
    let mut config = fixture("gpt2");
    config.insert("resid_pdrop".into(), json!(0.25));
    config.insert("embd_pdrop".into(), json!(0.125));
    let mut config = super::describe(&Value::Object(config).to_string(), "f").unwrap().config;
    let model = &config.stack.model;
    assert_eq!((model.dropout, model.embedding_dropout, model.drop_path), (0.25, 0.125, 0.0));
    let json = back(&config);
    assert_eq!((&json["resid_pdrop"], &json["embd_pdrop"]), (&json!(0.25), &json!(0.125)));
    assert!(json.get("elapid").is_none());
    config.stack.model.drop_path = 0.5;
    let json = back(&config);
    assert!(json["model_type"] == "gpt2" && json.get("elapid").is_some());
    let mut config = fixture("gpt2");
    config.insert("resid_pdrop".into(), json!(1.5));
    let error = super::describe(&Value::Object(config).to_string(), "f").err().unwrap().to_string();
    assert!(error.contains("resid_pdrop"), "{error}");
    let mut config = fixture("gpt_neox");
    config.insert("hidden_dropout".into(), json!(0.5));
    let mut config = super::describe(&Value::Object(config).to_string(), "f").unwrap().config;
    assert_eq!((config.stack.model.dropout, config.stack.model.embedding_dropout), (0.5, 0.5));
    assert!(back(&config).get("elapid").is_none());
    config.stack.model.embedding_dropout = 0.0;
    back(&config);
    let mut config = fixture("llama");
    config.insert("attention_dropout".into(), json!(0.1));
    let described = super::describe(&Value::Object(config).to_string(), "f").unwrap();
    assert!(described.warnings[0].contains("attention_dropout"), "{:?}", described.warnings);
}

/// A model of another format is saved in its files, and opened from them with the same bits; also when another program put
/// a prefix before all names, or left the first segment away.
#[test]
fn models_of_other_formats_are_saved_and_opened() {
    let bits = |model: &crate::LanguageModel| -> Vec<(String, Vec<u32>)> {
        let values = |value: &crate::Tensor| value.as_slice().iter().map(|x| x.to_bits()).collect();
        model.params().iter().map(|(_, param)| (param.name.clone(), values(&param.value))).collect()
    };
    for (name, config, shapes) in readable() {
        let model = crate::LanguageModel::new(read(&config).config, 7).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), &crate::checkpoint::SaveOptions::default()).unwrap();
        let path = dir.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let there: BTreeMap<String, Vec<usize>> =
            file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect();
        assert_eq!(there, shapes, "{name}");
        let again = crate::LanguageModel::open(dir.path()).unwrap();
        assert_eq!((again.config(), bits(&again)), (model.config(), bits(&model)), "{name}");
        // As a model without its head is written: the head, if it has one, keeps its name.
        let [embedding, head] = again.config().places().ends();
        let base = embedding.split_once('.').unwrap().0.to_owned() + ".";
        let without =
            |name: &str| if name == head { name.to_owned() } else { name.strip_prefix(&base).unwrap().to_owned() };
        for renamed in [&|name: &str| format!("module.{name}") as String, &without as &dyn Fn(&str) -> String] {
            let tensors: BTreeMap<String, _> = file.iter().map(|(name, view)| (renamed(name), view)).collect();
            fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
            let opened = crate::LanguageModel::open(dir.path()).unwrap();
            assert_eq!(bits(&opened), bits(&model), "{name}: {}", renamed(&embedding));
        }
    }
}
