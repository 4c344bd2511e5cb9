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
