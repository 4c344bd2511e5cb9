use std::fs;
use std::path::Path;

use elapid::LanguageModel;
use elapid::layers::mamba1;
use elapid::settings::Auto;
use elapid::tokenizer::Tokenizer;
use tempfile::tempdir;

use super::*;
use crate::data::Separator;

fn set(assignment: &str) -> Result<TrainConfig, String> {
    let mut config = TrainConfig::default();
    config.apply_override(assignment).map_err(|e| e.to_string())?;
    Ok(config)
}

fn parse(text: &str) -> String {
    TrainConfig::parse(text, "a.toml").unwrap_err().to_string()
}

/// `ELAPID_WRITE=1 cargo test the_manual` writes it.
#[test]
fn the_manual_is_what_the_settings_print() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/default.toml");
    if std::env::var_os("ELAPID_WRITE").is_some() {
        fs::write(&path, TrainConfig::manual()).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), TrainConfig::manual());
    let manual = TrainConfig::parse(&TrainConfig::manual(), "default.toml").unwrap();
    assert_eq!(manual, TrainConfig::default());
    manual.validate("default.toml").unwrap();
}

/// Config files of earlier runs, with the settings of Mamba-1 in `[model]` itself.
#[test]
fn configs_of_runs_are_read() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runs");
    let configs = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path().join("config.toml"));
    let found: Vec<_> = configs.filter(|path| path.is_file()).collect();
    for path in &found {
        let config = TrainConfig::load(path).unwrap();
        config.validate(&path.display().to_string()).unwrap();
        assert_eq!(TrainConfig::parse(&config.to_toml().unwrap(), "again").unwrap(), config);
    }
    assert!(found.len() >= 2);
}

#[test]
fn settings_of_layers_are_set_at_any_depth() {
    let mut config = TrainConfig::default();
    let all = ["model.layer.local.kind=mamba1", "model.layer.local.d_state=9", "model.layers=[\"local\"]"];
    all.iter().for_each(|one| config.apply_override(one).unwrap());
    assert_eq!(config.model.stack.named.keys().collect::<Vec<_>>(), ["local"], "mamba1 is in no pattern any more");
    config.apply_override("model.layer.local.d_conv=7").unwrap();
    config.apply_override("model.layer.local.scale=0.5").unwrap();
    let settings: &mamba1::Settings = config.model.stack.named["local"].layer.settings().unwrap();
    assert_eq!((settings.d_state.get(), settings.d_conv.get()), (9, 7));
    assert_eq!(TrainConfig::parse(&config.to_toml().unwrap(), "again").unwrap(), config);
    let error = config.apply_override("model.layer.local.d_stat=1").unwrap_err().to_string();
    assert!(error.contains("did you mean `model.layer.local.d_state`?"), "{error}");
    let error = config.apply_override("model.layers=[\"mamba7\"]").unwrap_err().to_string();
    assert!(error.contains("`mamba7` is no kind of layer") && error.contains("did you mean `mamba1`?"), "{error}");
    let error = parse("[model]\nlayers = [\"a\"]\n[model.layer.a]\nkind = \"mamba1\"\nd_state = 0\n");
    assert!(error.starts_with("a.toml:5: `model.layer.a.d_state`: "), "{error}");
    let error = parse("[model]\nd_state = 5\n[model.layer.mamba1]\nd_state = 4\n");
    assert!(error.starts_with("a.toml:2: `model.d_state`: "), "{error}");
}

#[test]
fn the_other_configs_are_valid() {
    let files = |dir: &str| fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).unwrap();
    let mut seen = 0;
    for entry in files("configs").chain(files("../../configs")) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let config = TrainConfig::load(&path).unwrap();
        config.validate(&path.display().to_string()).unwrap();
        config.model.resolve(&Tokenizer::byte()).unwrap();
        config.train.lr_schedule().unwrap();
        seen += 1;
    }
    assert!(seen >= 10);
}

/// configs/models has published models: vocabulary, and parameters as their authors count them. MoE-Mamba's are 542,212,096 without
/// norms and embedding.
#[test]
fn published_models_have_as_many_parameters() {
    let published = [
        ("bamba-9b", 128_256, Some(9_780_235_392)),
        ("based-360m", 0, None),
        ("blackmamba", 0, None),
        ("codestral-mamba-7b", 32768, Some(7_285_403_648)),
        ("falcon-mamba-7b", 65024, Some(7_272_665_088)),
        ("gla-340m", 0, None),
        ("gpt2", 50257, Some(124_439_808)),
        ("griffin", 0, None),
        ("hawk", 0, None),
        ("hgrn2-1.3b", 32000, Some(1_364_396_032)),
        ("jamba", 65536, Some(51_570_323_328)),
        ("llama-1.1b", 32000, Some(1_100_048_384)),
        ("lru", 0, None),
        ("mamba2-130m", 50288, Some(128_989_632)),
        ("mamba2-370m", 50277, Some(368_346_624)),
        ("mamba2-780m", 50277, Some(780_161_280)),
        ("mamba2-1.3b", 50277, Some(1_343_757_312)),
        ("mamba2-2.7b", 50277, Some(2_702_599_680)),
        ("mamba2-attention", 0, None),
        ("mamba2-attention-2.7b", 50277, Some(2_697_590_880)),
        ("mistral-7b", 32000, Some(7_241_732_096)),
        ("mixtral-8x7b", 32000, Some(46_702_792_704)),
        ("moe-mamba", 8, Some(542_212_096 + (17 + 8) * 512)),
        ("pythia-160m", 50277, Some(162_322_944)),
        ("qwen2-0.5b", 151_936, Some(494_032_768)),
        ("qwen2-moe", 151_936, Some(14_315_784_192)),
        ("recurrent-gemma-2b", 256_000, Some(2_682_862_080)),
        ("retnet-340m", 0, None),
        ("s5", 0, None),
        ("samba", 0, None),
        ("transformer-125m", 0, None),
    ];
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/models");
    for (name, vocab_size, count) in published {
        let path = dir.join(format!("{name}.toml"));
        let config = TrainConfig::load(&path).unwrap();
        config.validate(&path.display().to_string()).unwrap();
        let mut model = config.model.resolve(&Tokenizer::byte()).unwrap();
        if let Some(count) = count {
            model.vocab_size = vocab_size;
            (model.bos_token_id, model.eos_token_id, model.pad_token_id) = (None, None, None);
            assert_eq!(LanguageModel::parameter_count(&model).unwrap(), count, "{name}");
        }
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), published.len());
}

/// What configs/hybrids compares has as many parameters that a token passes: two operations for each.
#[test]
fn compared_models_have_ten_million_active_parameters() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/hybrids");
    let mut seen = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let config = TrainConfig::load(&path).unwrap();
        config.validate(&path.display().to_string()).unwrap();
        let model = LanguageModel::new(config.model.resolve(&Tokenizer::byte()).unwrap(), 0).unwrap();
        let flops = model.cost(0).flops;
        assert!((19_000_000..21_500_000).contains(&flops), "{}: {flops}", path.display());
        seen += 1;
    }
    assert_eq!(seen, 4);
}

/// configs/to-come has models whose layers, or settings of those, do not all exist: one error names them, and it is the only one.
#[test]
fn configs_to_come_lack_layers_alone() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/to-come");
    let mut seen = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match TrainConfig::load(&path) {
            Ok(config) => config.validate(&path.display().to_string()).unwrap(),
            Err(error) => {
                let error = error.to_string();
                let kind = error.contains("no kind") && error.contains(&format!("; there are {};", KINDS.join(", ")));
                // Of a kind that exists.
                let setting = error.contains("mamba2.scales`: there is no such setting");
                assert!(kind || setting, "{error}");
            }
        }
        seen += 1;
    }
    assert!(seen >= 4);
    let text = "[model]\nlayers = [\"x\", \"y\"]\n[train]\nstep = 3\n";
    let error = TrainConfig::parse(text, "a.toml").unwrap_err().to_string();
    assert!(error.starts_with("a.toml:4: `train.step`: "), "{error}");
}

#[test]
fn a_saved_config_is_the_same() {
    let dir = tempdir().unwrap();
    let mut config = TrainConfig::default();
    for assignment in [
        "train.lr=1e-3",
        "data.train=[\"a\", \"b c\"]",
        "data.val=\"x\"",
        "model.dt_rank=7",
        "data.separator=eos",
        "train.clip=1",
        "data.mode=streams",
        "model.discretisation=zoh",
        "model.selective=[\"C\"]",
        "model.a_init=exp-normal",
        "model.gate=false",
        "output.dir=C:\\runs \"1\"",
    ] {
        config.apply_override(assignment).unwrap();
    }
    let path = config.save(dir.path()).unwrap();
    assert_eq!(TrainConfig::load(&path).unwrap(), config);
    let text = fs::read_to_string(path).unwrap();
    assert!(
        text.contains("\nlr = 0.001\n")
            && text.contains("# Rows per batch; on several GPUs, per batch of each GPU.\nbatch = 8\n"),
        "{text}"
    );
}

#[test]
fn overrides_are_toml_or_bare_text() {
    assert_eq!(set("train.lr=1e-3").unwrap().train.lr, 1e-3);
    assert_eq!(set(" train.lr = 1 ").unwrap().train.lr, 1.0);
    assert_eq!(set("data.tokenizer=some/dir").unwrap().data.tokenizer, "some/dir");
    assert_eq!(set("data.tokenizer=\"some/dir\"").unwrap().data.tokenizer, "some/dir");
    assert_eq!(*set("data.train=a.txt").unwrap().data.train, ["a.txt"]);
    assert_eq!(*set("data.train=['a', 'b']").unwrap().data.train, ["a", "b"]);
    assert_eq!(set("data.separator=eos").unwrap().data.separator, Separator::Eos);
    let rank =
        |config: TrainConfig| config.model.stack.named["mamba1"].layer.settings::<mamba1::Settings>().unwrap().dt_rank;
    assert_eq!(rank(set("model.dt_rank=5").unwrap()).map_or(0, |rank| rank.get()), 5);
    assert_eq!(rank(set("model.layer.mamba1.dt_rank=auto").unwrap()), Auto::Auto);
    assert!(set("data.pack=true").unwrap().data.pack);
    assert_eq!(set("data.tokenizer=a=b").unwrap().data.tokenizer, "a=b");
}

#[test]
fn overrides_that_fail_say_why() {
    let near = |assignment: &str| set(assignment).unwrap_err();
    assert_eq!(
        near("train.lrr=1"),
        "--set train.lrr=1: `train.lrr`: there is no such setting; did you mean `train.lr`?"
    );
    assert!(near("lr=1").ends_with("did you mean `train.lr`?"));
    assert!(near("model.dmodel=1").ends_with("did you mean `model.d_model`?"));
    assert!(near("train=1").contains("no such setting"));
    assert!(near("train.batch.x=1").contains("no such setting"));
    assert!(near("train.lr").contains("write it as section.setting=value"));
    let error = near("train.steps=many");
    assert!(error.contains("`train.steps`: invalid type: string \"many\"") && error.ends_with("like 1000"), "{error}");
    assert!(near("train.steps=-1").contains("`train.steps`"));
    assert!(near("train.steps=1.5").contains("`train.steps`"));
    assert!(near("data.mode=sideways").contains("`windows`"));
    assert!(near("model.dt_rank=automatic").contains("\"auto\""));
    let mut config = TrainConfig::default();
    config.apply_override("train.steps=many").unwrap_err();
    assert_eq!(config, TrainConfig::default(), "a failed override changes nothing");
}

#[test]
fn integers_that_toml_cannot_say_are_refused_by_name() {
    let most = i64::MAX as u64;
    for (field, set) in [
        ("train.seed", (|config, n| config.train.seed = n) as fn(&mut TrainConfig, u64)),
        ("train.steps", |config, n| config.train.steps = n),
        ("train.batch", |config, n| config.train.batch = n as usize),
        ("train.warmup", |config, n| config.train.warmup = crate::schedule::Warmup::Steps(n)),
        ("task.eval_lengths", |config, n| config.task.eval_lengths = vec![1, n as usize]),
    ] {
        let mut config = TrainConfig::default();
        set(&mut config, most);
        assert_eq!(TrainConfig::parse(&config.to_toml().unwrap(), "a.toml").unwrap(), config);
        set(&mut config, most + 1);
        let before = config.clone();
        let errors = [
            config.apply_override("train.lr=1e-3").unwrap_err(),
            config.validate("a.toml").unwrap_err(),
            config.to_toml().unwrap_err(),
            config.differences(&TrainConfig::default()).unwrap_err(),
            TrainConfig::default().differences(&config).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.field, field, "{error}");
            assert!(error.what.contains("9223372036854775808"), "{error}");
        }
        let dir = tempdir().unwrap();
        config.save(dir.path()).unwrap_err();
        assert!(!dir.path().join("config.toml").exists() && config == before);
    }
}

#[test]
fn a_few_steps_do_with_the_defaults() {
    for steps in [1, 5, 20, 99, 1000] {
        let config = set(&format!("train.steps={steps}")).unwrap();
        config.validate("a.toml").unwrap();
        config.train.lr_schedule().unwrap();
    }
    assert_eq!(set("train.warmup=7").unwrap().train.warmup, crate::schedule::Warmup::Steps(7));
    assert!(set("train.warmup=many").unwrap_err().contains("\"auto\""));
}

#[test]
fn differences_are_overrides() {
    let default = TrainConfig::default();
    let mut config = default.clone();
    let all = [
        "model.layer.mamba1.selective=[]",
        "model.layer.mamba1.gate=false",
        "task.eval_lengths=[256, 512]",
        "train.lr=0.5",
    ];
    all.iter().for_each(|one| config.apply_override(one).unwrap());
    assert_eq!(config.differences(&default).unwrap(), all);
    // Of other layers only what differs from their defaults.
    let mut layers = default.clone();
    let all = ["model.layers=[\"attention\"]", "model.layer.attention.rope=\"pairs\""];
    all.iter().for_each(|assignment| layers.apply_override(assignment).unwrap());
    assert_eq!(layers.differences(&default).unwrap(), all);
    assert_eq!(default.differences(&default).unwrap(), [""; 0]);
}

#[test]
fn errors_have_file_line_and_field() {
    assert_eq!(
        parse("[train]\n\nstepz = 5\n"),
        "a.toml:3: `train.stepz`: there is no such setting; did you mean `train.steps`?"
    );
    let error = parse("# c\n[train]\nlr = \"fast\"\n");
    assert!(error.starts_with("a.toml:3: `train.lr`: invalid type: string \"fast\", expected f"), "{error}");
    let error = parse("[trian]\nlr = 1\n");
    assert!(error.starts_with("a.toml:1: `trian`: ") && error.contains("[train]"), "{error}");
    let error = parse("[data]\nmode = \"x\"\n");
    assert!(error.starts_with("a.toml:2: `data.mode`: unknown variant `x`"), "{error}");
    let error = parse("[data]\nlength = = 5\n");
    assert!(error.starts_with("a.toml:2: "), "{error}");
    let error = parse("lr = 5\n");
    assert!(error.starts_with("a.toml:1: `lr`: there is no such setting"), "{error}");
    let missing = TrainConfig::load(Path::new("no/such.toml")).unwrap_err().to_string();
    assert!(missing.contains("no/such.toml"), "{missing}");
}

#[test]
fn values_that_cannot_be() {
    for (assignment, field) in [
        ("model.d_model=0", "model.d_model"),
        ("model.dt_min=1.0", "model.layer.mamba1.dt_min"),
        ("data.train=[]", "data.train"),
        ("data.val_fraction=1.0", "data.val_fraction"),
        ("data.length=0", "data.length"),
        ("train.batch=0", "train.batch"),
        ("train.lr=nan", "train.lr"),
        ("train.min_lr=1.0", "train.min_lr"),
        ("train.warmup=3000", "train.warmup"),
        ("train.beta2=1.0", "train.beta2"),
        ("train.clip=-1.0", "train.clip"),
        ("train.label_smoothing=1.0", "train.label_smoothing"),
        ("train.eval_every=0", ""),
        ("train.stop_at_accuracy=2.0", "train.stop_at_accuracy"),
        ("train.stop_at_accuracy=0.5", "train.stop_at_accuracy"),
        ("model.selective=[\"D\"]", "model.layer.mamba1.selective"),
        ("train.stop_after=0", "train.stop_after"),
        ("task.name=sorting", "task.name"),
        ("task.name=copying", "train.eval_batches"),
        ("output.dir=\"\"", "output.dir"),
    ] {
        let mut config = TrainConfig::default();
        match config.apply_override(assignment).and_then(|()| config.validate("a.toml")) {
            Ok(()) => assert_eq!(field, "", "{assignment}"),
            Err(error) => assert_eq!(error.field, field, "{error}"),
        }
    }
}

#[test]
fn held_out_lengths_that_cannot_be() {
    let kind = crate::tasks::Kind::find("induction-heads").unwrap();
    let mut config = TrainConfig::parse(kind.settings, kind.name).unwrap();
    config.apply_override("task.eval_lengths=[256, 3]").unwrap();
    let error = config.validate("a.toml").unwrap_err();
    assert_eq!(error.field, "task.eval_lengths");
    assert!(error.what.ends_with("got 3"), "{error}");
}

#[test]
fn the_model_follows_the_tokenizer() {
    let config = TrainConfig::default().model.resolve(&Tokenizer::byte()).unwrap();
    assert_eq!((config.vocab_size, config.padded_vocab_size(), config.eos_token_id), (259, 264, Some(257)));
    assert_eq!(LanguageModel::parameter_count(&config).unwrap(), 1_819_904);
}
