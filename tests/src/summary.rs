//! What several runs have given.

use std::fmt;

/// Median and spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Half of the values are at most this.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Summary {
    /// Of at least one value.
    ///
    /// # Panics
    /// There is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (half, last) = (values.len() / 2, values.len() - 1);
        Self {
            median: (values[half] + values[last - half]) / 2.0,
            least: values[0],
            most: values[last],
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            median,
            least,
            most,
        } = self;
        f.pad(&format!("{median:.2} ({least:.2} to {most:.2})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let summary = |values: &[f64]| Summary::of(values.to_vec()).to_string();
        assert_eq!(summary(&[3.0, 1.0, 7.0]), "3.00 (1.00 to 7.00)");
        assert_eq!(summary(&[4.0, 1.0, 2.0, 8.0]), "3.00 (1.00 to 8.00)");
        assert_eq!(summary(&[5.0]), "5.00 (5.00 to 5.00)");
    }
}
