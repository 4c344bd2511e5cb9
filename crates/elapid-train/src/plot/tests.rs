use std::fs;

use tempfile::tempdir;

use super::*;

/// A run that learns: falling loss with noise, a validation every 100 steps.
fn run(steps: u64) -> Vec<Record> {
    let mut noise = 7_u64;
    (1..=steps / 10)
        .map(|i| {
            let step = i * 10;
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let jitter = (noise >> 40) as f64 / f64::from(1 << 24) - 0.5;
            let loss = 1.35 + 4.2 * (-(step as f64) / 120.0).exp() + 0.6 * (-(step as f64) / 900.0).exp();
            let val_loss = (step % 100 == 0).then_some(loss + 0.08 + step as f64 * 2e-5);
            let figures = val_loss.into_iter().map(|loss| (metrics::VAL_LOSS.to_owned(), loss)).collect();
            let lr = 0.002 * (step as f64 / 100.0).min(1.0);
            Record { step, lr, loss: loss + 0.16 * jitter, figures, ..Record::default() }
        })
        .collect()
}

fn decode(png: &[u8]) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width, info.height, pixels)
}

#[test]
fn a_loss_curve_has_its_words() {
    let chart = loss_curve(&run(2000), "Tiny Shakespeare, 1.1 M parameters").unwrap();
    for word in [
        "Tiny Shakespeare",
        "step",
        "loss, nats per token",
        "training",
        "held out",
        "2000",
        "learning rate",
        "sans-serif",
    ] {
        assert!(chart.svg.contains(word), "{word}");
    }
    assert!(!chart.svg.contains("<image"));
    let (width, height, pixels) = decode(&chart.png);
    assert_eq!((width, height), (2400, 1600), "twice those of the SVG");
    assert!(chart.svg.contains("width=\"1200\" height=\"800\""));
    let coloured = pixels.chunks_exact(3).filter(|p| p[2] > p[0].saturating_add(80)).count();
    assert!(coloured > 1000, "{coloured} blue pixels of the training loss");
    if let Some(dir) = std::env::var_os("ELAPID_PLOT_DIR") {
        chart.save(Path::new(&dir), "loss").unwrap();
    }
}

#[test]
fn many_series_on_a_log_axis() {
    let curve = |k: usize| -> Vec<(f64, f64)> {
        (0..30).map(|i| 2_f64.powi(i)).map(|x| (x, (1.0 + k as f64 / 2.0) * x.powf(-0.1 - 0.02 * k as f64))).collect()
    };
    let series: Vec<Series> = (0..8)
        .map(|k| Series {
            name: format!("width {}", 64 << k),
            points: curve(k),
            look: [Look::Line, Look::Dots, Look::Thin][k % 3],
            colour: k,
            last_value: true,
            settled: None,
        })
        .collect();
    let options = Options {
        title: "Scaling".into(),
        x_label: "tokens".into(),
        y_label: "loss".into(),
        x: Scale::Log,
        ..Options::default()
    };
    let chart = line_chart(&series, &options).unwrap();
    assert!(chart.svg.contains("width 8192") && chart.svg.contains("100M") && chart.svg.contains("\n1M\n"));
    if let Some(dir) = std::env::var_os("ELAPID_PLOT_DIR") {
        chart.save(Path::new(&dir), "scaling").unwrap();
    }
}

#[test]
fn gaps_and_lone_points_are_drawn() {
    let points = vec![(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, f64::INFINITY)];
    let series = Series { name: "a".into(), points, last_value: true, ..Series::default() };
    let chart = line_chart(&[series], &Options::default()).unwrap();
    assert_eq!(chart.svg.matches("<circle").count(), 2);
    assert!(chart.svg.contains("1.000"), "the last value that there is");
    loss_curve(&run(10), "one record").unwrap();
}

#[test]
fn nothing_to_draw_is_an_error() {
    let nan = Series { points: vec![(1.0, f64::NAN)], ..Series::default() };
    for series in [&[][..], &[nan][..]] {
        let error = line_chart(series, &Options { title: "T".into(), ..Options::default() }).unwrap_err().to_string();
        assert_eq!(error, "cannot draw `T`: there is no finite point to draw");
    }
    let point = Series { points: vec![(1.0, 1.0)], ..Series::default() };
    let options = Options { size: (0, 700), ..Options::default() };
    assert!(line_chart(std::slice::from_ref(&point), &options).is_err());
    for size in [(1, 1), (50, 50), (300, 200)] {
        line_chart(std::slice::from_ref(&point), &Options { size, ..Options::default() }).unwrap();
    }
}

#[test]
fn a_run_is_drawn_from_its_metrics() {
    let dir = tempdir().unwrap();
    let mut writer = metrics::Writer::open(&dir.path().join("metrics.jsonl"), 0).unwrap();
    run(300).iter().for_each(|record| writer.write(record).unwrap());
    plot_run(dir.path(), "run").unwrap();
    assert!(fs::read(dir.path().join("loss.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(fs::read_to_string(dir.path().join("loss.svg")).unwrap().contains("</svg>"));
    assert!(plot_run(&dir.path().join("none"), "x").is_err());
}

/// The places of the line of a colour, in pixels of the SVG, without its sample in the legend.
fn polyline(svg: &str, colour: &str) -> Vec<(f64, f64)> {
    let lines = svg
        .lines()
        .filter(|line| line.starts_with("<polyline") && line.contains("opacity=\"1\"") && line.contains(colour));
    let points =
        lines.flat_map(|line| line.split("points=\"").nth(1).unwrap().split('"').next().unwrap().split_whitespace());
    points
        .map(|point| point.split_once(',').unwrap())
        .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
        .filter(|at: &(f64, f64)| at.1 > 80.0)
        .collect()
}

#[test]
fn the_height_of_a_loss_curve_is_that_after_the_warm_up() {
    let records = run(2000);
    assert_eq!(settled(&records).unwrap().step, 100);
    let chart = loss_curve(&records, "run").unwrap();
    assert!(!chart.svg.contains("\n5\n") && !chart.svg.contains("\n4\n"), "losses of the warm-up are above the frame");
    let training = polyline(&chart.svg, "#0072B2");
    let (first, last) = (training[0], training[training.len() - 1]);
    assert!(training.iter().all(|at| (92.0..=800.0).contains(&at.1)), "{training:?}");
    assert!(first.1 < 120.0 && last.1 > 450.0, "it falls from the top to the bottom: {first:?}, {last:?}");
    assert_eq!(training.iter().filter(|at| at.1 < 93.0).count(), 1, "cut off, not drawn along the top");
    // A run of two steps, and one without a warm-up.
    assert_eq!(settled(&records[..2]).unwrap().step, 10);
    let constant: Vec<Record> = records.iter().map(|record| Record { lr: 0.1, ..record.clone() }).collect();
    assert_eq!((settled(&constant).unwrap().step, settled(&[])), (100, None));
}

#[test]
fn bits_per_byte_are_a_second_axis() {
    let mut records = run(1000);
    assert!(!loss_curve(&records, "run").unwrap().svg.contains("bits per byte"));
    for record in &mut records {
        if let Some(loss) = record.figure(metrics::VAL_LOSS) {
            record.figures.insert(metrics::BITS_PER_BYTE.into(), 2.0 * loss);
        }
    }
    let svg = loss_curve(&records, "run").unwrap().svg;
    let last = records.last().unwrap().figure(metrics::VAL_LOSS).unwrap();
    let legend = format!("held out: {last:.3}, {:.3} bits per byte", 2.0 * last);
    assert!(svg.contains(&legend) && svg.contains("\nbits per byte\n"), "{legend}");
}

#[test]
fn a_mark_is_named_and_lengths_are_powers_of_two() {
    let points: Vec<(f64, f64)> = (6..=12).map(|i| (2_f64.powi(i), 100.0)).collect();
    let lengths = points.iter().map(|point| point.0 as usize);
    assert_eq!((Scale::of_lengths(lengths), Scale::of_lengths([64, 100].into_iter())), (Scale::Log2, Scale::Log));
    let one = Series { points, look: Look::Dots, ..Series::default() };
    let series = [one.clone(), Series { colour: 1, ..one }];
    let marks = vec![(256.0, "training length".to_owned())];
    let chart = line_chart(&series, &Options { x: Scale::Log2, marks, ..Options::default() }).unwrap();
    for word in ["64", "128", "1024", "4096", "training length"] {
        assert!(chart.svg.contains(&format!("\n{word}\n")), "{word}");
    }
    // Both lines and the dots of both are seen.
    let dots = |colour: &str| chart.svg.lines().filter(|l| l.starts_with("<circle") && l.contains(colour)).count();
    assert_eq!((dots("#0072B2"), dots("#D55E00")), (7, 3));
    assert!(polyline(&chart.svg, "#D55E00").len() > 20, "dashes");
}

#[test]
fn means_keep_all_that_is_finite() {
    let line: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), f64::from(1000 - i))).collect();
    let means_of_ten = means(&line);
    assert_eq!((means_of_ten.len(), means_of_ten[0], means_of_ten[99]), (100, (4.5, 995.5), (994.5, 5.5)));
    assert_eq!(means(&line[..100]), line[..100]);
    let mut gaps = line[..200].to_vec();
    (gaps[0].1, gaps[2].1, gaps[3].1) = (f64::NAN, f64::NAN, f64::INFINITY);
    let means_of_two = means(&gaps);
    assert_eq!(means_of_two[0], line[1]);
    assert!(means_of_two[1].1.is_nan());
    assert_eq!(means(&[]), []);
}

#[test]
fn names_beside_dots_do_not_overlap() {
    // Four points at nearly the same place, and one at the right end.
    let at = [(10.0, 1.0), (10.5, 1.001), (11.0, 0.999), (10.2, 1.0005), (1e6, 1.2)];
    let series: Vec<Series> = (0..at.len())
        .map(|k| Series { name: format!("name{k}"), points: vec![at[k]], look: Look::Named, ..Series::default() })
        .collect();
    let chart = line_chart(&series, &Options { x: Scale::Log, ..Options::default() }).unwrap();
    // Left and right ends and heights, as wide as they are reckoned.
    let places: Vec<(f64, f64, f64)> = (0..5)
        .map(|k| {
            let before = &chart.svg[..chart.svg.find(&format!("name{k}")).unwrap()];
            let element = &before[before.rfind("<text").unwrap()..];
            let number = |key: &str| -> f64 {
                element.split(&format!(" {key}=\"")).nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
            };
            let (x, wide) = (number("x"), 9.0 * 5.0);
            let from = if element.contains("text-anchor=\"end\"") { x - wide } else { x };
            (from, from + wide, number("y"))
        })
        .collect();
    for (i, a) in places.iter().enumerate() {
        for b in &places[..i] {
            assert!(a.0 >= b.1 || b.0 >= a.1 || (a.2 - b.2).abs() >= 18.0, "{places:?}");
        }
    }
    assert_eq!(chart.svg.matches("<circle").count(), 5);
    assert!((0..5).all(|k| chart.svg.matches(&format!("name{k}")).count() == 1), "no legend");
}
