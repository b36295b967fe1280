//! What a guest said about itself: the sections that its script printed on the console.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};

/// A guest's answers, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    sections: BTreeMap<String, Section>,
    /// Exit status of the guest's script; absent if the guest never got there.
    pub exit: Option<i32>,
}

#[derive(Debug, PartialEq, Eq)]
struct Section {
    text: String,
    status: i32,
}

impl Report {
    /// Finds the sections in what a console printed.
    ///
    /// # Errors
    /// If a section does not end or ends under another name.
    pub fn parse(console: &str) -> Result<Self> {
        let mut report = Self::default();
        let mut open: Option<(&str, String)> = None;
        for line in console.lines() {
            let words = line.strip_prefix("@@ ").unwrap_or("");
            match (words.split(' ').collect::<Vec<_>>().as_slice(), &mut open) {
                (["begin", name], None) => open = Some((name, String::new())),
                (["end", name, status], Some((opened, _))) if name == opened => {
                    let status = status.parse().context("exit status of a section")?;
                    let (name, text) = open.take().context("a section is open")?;
                    report
                        .sections
                        .insert(name.to_owned(), Section { text, status });
                }
                (["exit", status], None) => {
                    report.exit = Some(status.parse().context("exit status of the script")?);
                }
                (_, Some((_, text))) => {
                    text.push_str(line);
                    text.push('\n');
                }
                (_, None) => {}
            }
        }
        if let Some((name, _)) = open {
            bail!("the guest stopped in the middle of section {name}");
        }
        Ok(report)
    }

    /// The output of the command of section `name`.
    ///
    /// # Errors
    /// If the guest printed no such section, or its command failed.
    pub fn text(&self, name: &str) -> Result<&str> {
        let section = self
            .sections
            .get(name)
            .with_context(|| format!("the guest reported no {name}"))?;
        ensure!(
            section.status == 0,
            "{name} failed in the guest with status {}: {}",
            section.status,
            section.text
        );
        Ok(&section.text)
    }

    /// The bytes that section `name` holds in base64.
    ///
    /// # Errors
    /// As [`text`](Self::text), and if it is not base64.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        base64(self.text(name)?).with_context(|| format!("{name} is not base64"))
    }

    /// The names of all sections that begin with `prefix`, without it.
    pub fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.sections
            .keys()
            .filter_map(move |name| name.strip_prefix(prefix))
    }
}

/// One report that several tests look at: the first that asks boots the guest, the others wait.
pub struct SharedReport {
    boot: fn() -> Result<Report>,
    report: OnceLock<Result<Report, String>>,
}

impl SharedReport {
    /// One that comes from `boot`.
    pub const fn new(boot: fn() -> Result<Report>) -> Self {
        Self {
            boot,
            report: OnceLock::new(),
        }
    }

    /// The report.
    ///
    /// # Errors
    /// With what went wrong in the boot, to each caller.
    pub fn get(&self) -> Result<&Report> {
        self.report
            .get_or_init(|| (self.boot)().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("the shared guest failed: {error}"))
    }
}

/// Decodes base64 (RFC 4648, section 4); white space is skipped.
fn base64(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for character in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            other => bail!("unexpected byte {other:#04x}"),
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "\
[    0.000000] Linux version 6.12
@@ begin cpus
2
@@ end cpus 0
noise between
@@ begin acpi/APIC
QVBJQw==
@@ end acpi/APIC 0
@@ begin missing
cat: no such file
@@ end missing 1
@@ exit 3
";

    #[test]
    fn finds_sections() {
        let report = Report::parse(CONSOLE).unwrap();
        assert_eq!(report.text("cpus").unwrap(), "2\n");
        assert_eq!(report.bytes("acpi/APIC").unwrap(), b"APIC");
        assert_eq!(report.names("acpi/").collect::<Vec<_>>(), ["APIC"]);
        assert_eq!(report.exit, Some(3));
    }

    #[test]
    fn a_section_that_failed_or_is_absent_is_an_error() {
        let report = Report::parse(CONSOLE).unwrap();
        let error = report.text("missing").unwrap_err().to_string();
        assert!(error.contains("status 1: cat: no such file"), "{error}");
        assert!(report.text("memory").is_err());
        assert!(report.bytes("cpus").is_ok());
    }

    #[test]
    fn a_guest_that_stops_early_is_noticed() {
        let error = Report::parse("@@ begin cpus\n2\n").unwrap_err();
        assert!(error.to_string().contains("section cpus"), "{error}");
        assert_eq!(Report::parse("no marker\n").unwrap().exit, None);
    }

    /// The test vectors of RFC 4648, section 10.
    #[test]
    fn decodes_base64() {
        let vectors = [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9v\nYg==\n", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
        ];
        for (encoded, decoded) in vectors {
            assert_eq!(base64(encoded).unwrap(), decoded.as_bytes());
        }
        assert!(base64("Zm9v!").is_err());
    }
}
