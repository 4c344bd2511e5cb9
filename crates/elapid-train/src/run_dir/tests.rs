use std::fs;

use tempfile::{TempDir, tempdir};

use super::*;

fn config(dir: &TempDir) -> TrainConfig {
    let mut config = TrainConfig::default();
    config.output.dir = dir.path().to_owned();
    config
}

fn never(_: &Path) -> bool {
    false
}

fn begin(config: &TrainConfig, start: Start) -> Result<RunDir> {
    let mut dir = RunDir::claim(config, start, &never)?;
    dir.begin(start)?;
    Ok(dir)
}

fn names(dir: &TempDir) -> Vec<String> {
    disk::names(dir.path())
}

#[test]
fn what_others_wrote_is_refused_by_name_and_moved_only_when_asked() {
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        "metrics.jsonl",
        "loss.png",
        "config.toml",
    ] {
        let dir = tempdir().unwrap();
        let config = config(&dir);
        fs::write(dir.path().join("notes.txt"), "mine").unwrap();
        fs::write(dir.path().join(name), "mine").unwrap();
        let error = RunDir::claim(&config, Start::New, &never).unwrap_err().to_string();
        for word in [name, "--output", "--overwrite", "old-1"] {
            assert!(error.contains(word), "{name}: {error}");
        }
        let mut wanted = vec![name.to_owned(), "notes.txt".to_owned()];
        wanted.sort_unstable();
        assert_eq!(names(&dir), wanted, "nothing is left behind");

        let claimed = begin(&config, Start::Overwrite).unwrap();
        assert!(claimed.notices[0].contains("old-1"), "{:?}", claimed.notices);
        assert_eq!(names(&dir), [lock::NAME, "notes.txt", "old-1", "resume"]);
        assert_eq!(fs::read_to_string(dir.path().join("old-1").join(name)).unwrap(), "mine");
        drop(claimed);
        fs::write(dir.path().join(name), "again").unwrap();
        begin(&config, Start::Overwrite).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("old-1").join(name)).unwrap(), "mine");
        assert_eq!(fs::read_to_string(dir.path().join("old-2").join(name)).unwrap(), "again");
    }
}

#[test]
fn settings_that_this_run_would_write_are_no_hindrance() {
    let dir = tempdir().unwrap();
    let config = config(&dir);
    config.save(dir.path()).unwrap();
    begin(&config, Start::New).unwrap();
    // The same settings in a file that was edited.
    let other = tempdir().unwrap();
    let config = TrainConfig { output: crate::config::OutputConfig { dir: other.path().to_owned() }, ..config };
    fs::write(other.path().join("config.toml"), format!("# my notes\n{}", config.to_toml().unwrap())).unwrap();
    let error = RunDir::claim(&config, Start::New, &never).unwrap_err().to_string();
    assert!(error.contains("config.toml"), "{error}");
}

#[test]
fn a_run_without_a_checkpoint_can_be_begun_again_with_its_settings_alone() {
    let dir = tempdir().unwrap();
    let config = config(&dir);
    let begun = begin(&config, Start::New).unwrap();
    begun.save_config(&config).unwrap();
    drop(begun);
    fs::write(dir.path().join("model.safetensors"), "of a validation").unwrap();
    fs::write(dir.path().join(".elapid-x.tmp"), "left by a kill").unwrap();
    fs::create_dir(steps::partial(dir.path(), 7)).unwrap();
    let mut other = config.clone();
    other.train.seed = 5;
    let error = RunDir::claim(&other, Start::New, &never).unwrap_err().to_string();
    assert!(error.contains("train.seed=5") && error.contains("--overwrite"), "{error}");
    drop(begin(&config, Start::New).unwrap());
    assert_eq!(names(&dir), [lock::NAME, "config.toml", "model.safetensors", "resume"]);
    assert_eq!(disk::names(&dir.path().join(RESUME)), [BEGUN]);
    // After a first checkpoint, a directory without one is not a fresh start.
    RunDir::has_begun(dir.path()).unwrap();
    let error = RunDir::claim(&config, Start::New, &never).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && !error.contains("config.toml"), "{error}");
}

#[test]
fn a_whole_checkpoint_that_was_not_finished_is_a_run_too() {
    let dir = tempdir().unwrap();
    let config = config(&dir);
    drop(begin(&config, Start::New).unwrap());
    fs::create_dir(steps::partial(dir.path(), 7)).unwrap();
    let error = RunDir::claim(&config, Start::New, &|_| true).unwrap_err().to_string();
    assert!(error.contains("a run at step 7") && error.contains("--resume"), "{error}");
    assert!(steps::partial(dir.path(), 7).is_dir(), "it stays");
}

#[test]
fn a_folder_named_resume_that_is_not_ours_stays() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join(RESUME)).unwrap();
    fs::write(dir.path().join(RESUME).join("cv.txt"), "mine").unwrap();
    let error = RunDir::claim(&config(&dir), Start::New, &never).unwrap_err().to_string();
    assert!(error.contains("holds resume"), "{error}");
}

#[test]
fn what_is_no_directory_is_refused() {
    let dir = tempdir().unwrap();
    let mut config = config(&dir);
    config.output.dir = dir.path().join("file");
    fs::write(&config.output.dir, "x").unwrap();
    let error = RunDir::claim(&config, Start::New, &never).unwrap_err().to_string();
    assert!(error.contains("no directory"), "{error}");
}

#[test]
fn settings_that_somebody_edited_are_kept() {
    let dir = tempdir().unwrap();
    let config = config(&dir);
    let claimed = begin(&config, Start::New).unwrap();
    claimed.save_config(&config).unwrap();
    let path = dir.path().join("config.toml");
    let edited = format!("# my notes\n{}", fs::read_to_string(&path).unwrap());
    fs::write(&path, &edited).unwrap();
    claimed.save_config(&config).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), edited, "it says the same");
    let mut longer = config.clone();
    longer.train.steps = 5000;
    claimed.save_config(&longer).unwrap();
    assert_eq!(TrainConfig::load(&path).unwrap(), longer);
    assert_eq!(fs::read_to_string(dir.path().join("config.toml.old-1")).unwrap(), edited);
    // What elapid wrote itself is replaced.
    claimed.save_config(&config).unwrap();
    assert!(!dir.path().join("config.toml.old-2").exists());
}
