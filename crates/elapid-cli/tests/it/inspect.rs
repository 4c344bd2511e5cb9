//! `elapid inspect`.

use crate::{elapid, tiny};

#[test]
fn the_tensors_add_up() {
    let model = tiny();
    let found = elapid(&["inspect", "--model", &model, "--json"]).json();
    let tensors = found["tensors"].as_array().unwrap();
    let sum: u64 = tensors.iter().map(|tensor| tensor["count"].as_u64().unwrap()).sum();
    assert_eq!(found["parameters"], sum);
    assert_eq!(found["parameter_bytes"], 4 * sum);
    assert_eq!(found["config"]["hidden_size"], 48);
    // Two layers of 96 channels: 3 positions of the convolution, 16 state numbers.
    assert_eq!(found["state_numbers"], 2 * 96 * (3 + 16));
    let decays = |name: &str| {
        tensors.iter().find(|tensor| tensor["name"] == name).unwrap_or_else(|| panic!("no {name}"))["decay"] == true
    };
    assert!(decays("backbone.layers.1.mixer.in_proj.weight"));
    assert!(!decays("backbone.layers.1.mixer.A_log") && !decays("backbone.norm_f.weight"));
    let text = elapid(&["inspect", "--model", &model]);
    for word in ["backbone.layers.0.mixer.conv1d.weight", "96 x 1 x 4", "a token costs", "a state holds"] {
        assert!(text.text().contains(word), "no `{word}` in:\n{}", text.stdout);
    }
}

#[test]
fn published_sizes_need_no_weights() {
    let found = elapid(&["inspect", "--model-size", "130m", "--json"]).json();
    assert_eq!(found["parameters"], 129_135_360);
    assert_eq!(found["state_numbers"], 24 * 1536 * (3 + 16));
    let small = elapid(&["inspect", "--model-size", "64x2", "--vocab", "10", "--json"]).json();
    assert_eq!(small["tensors"][0]["shape"], serde_json::json!([10, 64]));
    elapid(&["inspect", "--model-size", "131m"]).fails(2, &["131m", "130m"]);
    elapid(&["inspect", "--model-size", "99999999x65536"]).fails(2, &["d_model"]);
}

#[test]
fn without_arguments_the_model_inside() {
    let found = elapid(&["inspect", "--json"]).json();
    assert_eq!(found["tokenizer"], "bytes, 259 ids");
}

#[test]
fn step_sizes_over_a_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("pictures/delta").display().to_string();
    let model = tiny();
    let run = |more: &[&str]| {
        elapid(&[&["inspect", "--trace", "delta", "--model", &model, "--picture", &stem], more].concat())
    };
    let found = run(&["--length", "60", "--json"]).json();
    let roles: Vec<&str> = found["roles"].as_array().unwrap().iter().map(|role| role.as_str().unwrap()).collect();
    assert_eq!(roles.len(), 60 + 32);
    let positions = |wanted: &str| (0..92).filter(|&t| roles[t] == wanted).collect::<Vec<_>>();
    assert_eq!((positions("data").len(), positions("asked").len()), (16, 16));
    for layer in found["layers"].as_array().unwrap() {
        let values =
            |name: &str| layer[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
        let (mean, low, high) = (values("mean"), values("low"), values("high"));
        assert!((0..92).all(|t| 0.0 < low[t] && low[t] < mean[t] && low[t] < high[t]));
        let at = |role: &str| positions(role).iter().map(|&t| mean[t]).sum::<f64>() / positions(role).len() as f64;
        let ratio = layer["data_to_noise"].as_f64().unwrap();
        assert!((at("data") / at("noise") - ratio).abs() < 1e-9 * ratio);
    }
    assert_eq!(found["layers"].as_array().unwrap().len(), 2);
    for extension in ["svg", "png"] {
        assert!(dir.path().join(format!("pictures/delta.{extension}")).is_file());
    }
    assert_ne!(run(&["--length", "60", "--seed", "2", "--json"]).json()["tokens"], found["tokens"]);
    assert!(run(&["--task", "induction-heads", "--length", "20"]).text().contains("data / noise"));
    run(&["--task", "induction-heads", "--length", "2"]).fails(2, &["--length", "4 to"]);
    run(&["--prompt", "x"]).fails(2, &["tokenizer.json"]);
    let text = elapid(&["inspect", "--trace", "delta", "--prompt", "ROMEO:", "--picture", &stem, "--json"]).json();
    assert_eq!(text["roles"].as_array().unwrap().len(), 6);
    elapid(&["inspect", "--task", "copying"]).fails(2, &["--trace"]);
    elapid(&["inspect", "--trace", "gamma"]).fails(2, &["gamma", "delta"]);
}
