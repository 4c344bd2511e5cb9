//! Weights in other forms: `--weights`, and `elapid convert`.

use std::fs;

use crate::{elapid, tiny};

fn ids(arguments: &[&str]) -> Vec<u64> {
    let prompt = ["generate", "--prompt-tokens", "1,2,3", "--max-tokens", "12", "--greedy", "--ignore-eos", "--json"];
    let run = elapid(&[&prompt[..], arguments].concat()).json();
    run["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn a_converted_model_is_what_packing_at_load_gives() {
    let (tiny, dir) = (tiny(), tempfile::tempdir().unwrap());
    for form in ["bf16", "int8", "int4"] {
        let to = dir.path().join(form).display().to_string();
        let run = elapid(&["convert", "--model", &tiny, "--weights", form, "--output", &to, "--json"]).json();
        assert_eq!((&run["weights"], run["parameters"].as_u64().is_some()), (&form.into(), true));
        let stored = ids(&["--model", &to]);
        assert_eq!(stored, ids(&["--model", &tiny, "--weights", form]), "{form}");
        assert_eq!(stored, ids(&["--model", &to, "--guess", "4"]), "{form}");
        // Numbers again: the rounded ones.
        let back = dir.path().join(format!("{form}-f32")).display().to_string();
        elapid(&["convert", "--model", &to, "--weights", "f32", "--output", &back]).text();
        let tensors = |model: &str| elapid(&["inspect", "--model", model, "--json"]).json();
        let dtypes = |model: &str| tensors(model)["tensors"].to_string();
        assert!(!dtypes(&back).contains(&format!("\"{form}\"")) && dtypes(&to).contains(&format!("\"{form}\"")));
        let size = fs::metadata(dir.path().join(form).join("model.safetensors")).unwrap().len();
        let stated = tensors(&to)["parameter_bytes"].as_u64().unwrap();
        assert!(stated < size && size - stated < 8192, "{stated} of {size} bytes");
    }
    let run = elapid(&[
        "bench",
        "decode",
        "--model",
        &dir.path().join("int8").display().to_string(),
        "--reps",
        "2",
        "--json",
    ]);
    assert_eq!(run.json()["weights"], "int8");
}

#[test]
fn what_cannot_be_converted_is_an_error_with_its_fix() {
    let (tiny, dir) = (tiny(), tempfile::tempdir().unwrap());
    let to = dir.path().display().to_string();
    elapid(&["convert", "--model", &tiny, "--weights", "int2", "--output", &to])
        .fails(2, &["`int2` is not a form of weights", "int4"]);
    elapid(&["convert", "--model", &to, "--weights", "int8", "--output", &to])
        .fails(2, &["wanted another directory than --model"]);
    let text = dir.path().join("text");
    fs::write(&text, "a").unwrap();
    let text = text.display().to_string();
    elapid(&["convert", "--model", &tiny, "--weights", "int4", "--calibrate", &text, "--output", &to])
        .fails(2, &["no tokenizer.json there, which --calibrate needs"]);
    elapid(&["convert", "--model", &tiny, "--weights", "int8", "--calibrate", &text, "--output", &to])
        .fails(2, &["--calibrate: wanted it with --weights int4"]);
    elapid(&["bench", "train", "--model-size", "16x1", "--weights", "int8"])
        .fails(2, &["--weights is for inference: leave it out to train"]);
}
