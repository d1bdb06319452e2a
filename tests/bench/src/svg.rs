//! Draws a table as a picture: a bar for the median of each row, a whisker from the minimum to the p95.

use std::fmt::Write as _;

use super::figures::Table;

const WIDTH: f64 = 860.0;
/// The left end of the bars; names are left of it.
const LEFT: f64 = 300.0;
/// The space for the number after the longest bar.
const RIGHT: f64 = 90.0;
const ROW: f64 = 30.0;
const TOP: f64 = 52.0;

/// Returns the SVG document, without scripts or fonts.
#[must_use]
pub(super) fn bars(table: &Table) -> String {
    let largest = table
        .rows
        .iter()
        .map(|row| row.summary().p95)
        .fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + value / largest * (WIDTH - LEFT - RIGHT);
    let height = TOP + ROW * table.rows.len() as f64 + 14.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"16\" font-weight=\"bold\">{}</text>\n\
         <text x=\"12\" y=\"40\" fill=\"#666\">bar: median; line: least to p95; {}</text>\n",
        escaped(&table.title),
        escaped(table.unit),
    );
    for (number, row) in table.rows.iter().enumerate() {
        let summary = row.summary();
        let y = TOP + ROW * number as f64;
        let middle = y + ROW / 2.0;
        let colour = if row.name.starts_with("ebbtide") {
            "#1f77b4"
        } else {
            "#b8c4ce"
        };
        let (from, median, to) = (x(summary.min), x(summary.median), x(summary.p95));
        // Writing to a String does not fail.
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\n\
             <path d=\"M{from:.1} {middle}H{to:.1}\" stroke=\"#333\"/>\n\
             <text x=\"{:.1}\" y=\"{}\" fill=\"#333\">{:.4}</text>\n",
            LEFT - 8.0,
            middle + 4.0,
            escaped(&row.name),
            y + 5.0,
            median - LEFT,
            ROW - 10.0,
            to.max(median) + 6.0,
            middle + 4.0,
            Significant(summary.median),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A number that is formatted with as many significant digits as the precision says, without an exponent.
struct Significant(f64);

impl std::fmt::Display for Significant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(3);
        let before = if self.0.abs() < 1.0 {
            1
        } else {
            self.0.abs().log10().floor() as usize + 1
        };
        write!(f, "{:.*}", digits.saturating_sub(before), self.0)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{super::figures::Series, *};

    #[test]
    fn every_row_is_drawn_within_the_picture_and_names_are_escaped() {
        let table = Table {
            title: "a < b".into(),
            meaning: String::new(),
            unit: "ms",
            rows: vec![
                Series {
                    name: "x & y".into(),
                    values: vec![1.0, 4.0],
                },
                Series::new("nothing"),
            ],
            floor: None,
            peer: None,
            paired: None,
        };
        let svg = bars(&table);
        assert!(
            svg.contains("a &lt; b") && svg.contains("x &amp; y"),
            "{svg}"
        );
        assert_eq!(svg.matches("<path").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn digits_are_significant_ones() {
        for (value, text) in [(0.0, "0.000"), (1.2345, "1.234"), (12345.6, "12346")] {
            assert_eq!(format!("{:.4}", Significant(value)), text);
        }
    }
}
