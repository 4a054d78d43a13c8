//! Lines through measured points, as SVG that takes its colours from the page around it.

use plotters::prelude::*;

/// Pixels of a plot, which the page scales to its own width.
const SIZE: (u32, u32) = (760, 340);
/// Told apart on light and dark ground, also by who sees few colours.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0x3b, 0x82, 0xf6),
    RGBColor(0xf5, 0x9e, 0x0b),
    RGBColor(0x10, 0xb9, 0x81),
    RGBColor(0xec, 0x48, 0x99),
    RGBColor(0x8b, 0x5c, 0xf6),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    Linear,
    /// Every step is a factor.
    Log,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Axis {
    pub label: &'static str,
    pub scale: Scale,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Whether a line leads through them.
    pub line: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Plot {
    /// Its anchor in the page.
    pub id: &'static str,
    pub title: &'static str,
    /// What is to be seen, and how it was measured.
    pub note: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.max(1e-3).log10(),
        }
    }

    fn value(self, place: f64) -> f64 {
        match self {
            Scale::Linear => place,
            Scale::Log => 10_f64.powf(place),
        }
    }

    /// From just below the least to just above the greatest; a linear axis begins at zero.
    fn range(self, values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
        let (mut least, mut most) = (f64::MAX, f64::MIN);
        values
            .map(|value| self.place(value))
            .for_each(|place| (least, most) = (least.min(place), most.max(place)));
        match self {
            _ if least > most => 0.0..1.0,
            Scale::Linear => least.min(0.0)..if most > 0.0 { most * 1.05 } else { 1.0 },
            Scale::Log => least.floor()..most.ceil().max(least.floor() + 1.0),
        }
    }
}

/// A number as people write it beside an axis.
pub fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if value == value.round() || value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// # Errors
///
/// The plotting library cannot draw it.
pub fn svg(plot: &Plot) -> Result<String, String> {
    let mut text = String::new();
    draw(plot, &mut text).map_err(|e| format!("{}: {e}", plot.title))?;
    // Black stands for the colour of the page's text, which is light on dark ground.
    Ok(text.replace("#000000", "currentColor").replacen("<svg ", "<svg role=\"img\" ", 1))
}

fn draw(plot: &Plot, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let x_range = plot.x.scale.range(points().map(|(x, _)| *x));
    let y_range = plot.y.scale.range(points().map(|(_, y)| *y));
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(x_range, y_range)?;
    let font = ("system-ui, sans-serif", 13).into_font();
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .axis_style(BLACK.mix(0.5))
        .label_style(font.clone())
        .axis_desc_style(font.clone())
        .x_desc(plot.x.label)
        .y_desc(plot.y.label)
        .x_label_formatter(&|place| short(plot.x.scale.value(*place)))
        .y_label_formatter(&|place| short(plot.y.scale.value(*place)))
        .draw()?;
    for (series, colour) in plot.series.iter().zip(COLOURS.iter().cycle()) {
        let place = |(x, y): &(f64, f64)| (plot.x.scale.place(*x), plot.y.scale.place(*y));
        let line: Vec<(f64, f64)> = series.points.iter().map(place).collect();
        let style = colour.stroke_width(2);
        if series.line {
            chart
                .draw_series(LineSeries::new(line.iter().copied(), style))?
                .label(series.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        } else {
            chart
                .draw_series(line.iter().map(|point| Cross::new(*point, 5, style)))?
                .label(series.name.as_str())
                .legend(move |(x, y)| Cross::new((x + 9, y), 5, style));
        }
        if series.line && line.len() <= 40 {
            chart.draw_series(line.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
    }
    if plot.series.len() > 1 {
        chart.configure_series_labels().label_font(font).border_style(BLACK.mix(0.2)).draw()?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beside_an_axis_are_short() {
        let values = [0.0, 0.25, 1.0, 12.34, 999.0, 1000.0, 2_500_000.0, 1234.0];
        assert_eq!(values.map(short), ["0", "0.25", "1", "12.3", "999", "1k", "2.5M", "1.23k"]);
    }

    #[test]
    fn a_plot_has_its_axes_lines_and_names_and_no_black() {
        let series = |name: &str, factor| Series {
            name: name.into(),
            points: [1.0, 10.0, 100.0].map(|x| (x, x * factor)).to_vec(),
            line: true,
        };
        let axis = |label, scale| Axis { label, scale };
        let (id, title, note) = ("load", "Latency", String::new());
        let mut plot = Plot {
            id,
            title,
            note,
            x: axis("transfers/s", Scale::Log),
            y: axis("µs", Scale::Linear),
            series: vec![series("p50", 2.0), series("p99", 3.0)],
        };
        let text = svg(&plot).expect("a drawing");
        for part in
            ["<svg role=\"img\"", "transfers/s", "µs", "p50", "p99", "<polyline", "<circle", "currentColor"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("#000000"));
        // Nothing measured is no reason to fail.
        plot.series.clear();
        assert!(svg(&plot).is_ok());
    }
}
