//! The VMM with its REST API, and a client that is not ours to begin with: it knows no more of HTTP
//! than RFC 9112, and keeps every byte.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::output::Output;
use crate::signals::restore_defaults;

/// The longest that anything may take, unless somebody is more patient.
const PATIENCE: Duration = Duration::from_secs(60);

/// A VMM that waits for requests.
pub struct ApiServer {
    child: Child,
    socket: PathBuf,
    errors: Output,
    folder: TempDir,
    patience: Duration,
}

impl ApiServer {
    /// Starts `program` with an API socket and further `options`.
    ///
    /// # Panics
    /// If it cannot be started, or ends, or does not listen.
    pub fn start(program: &Path, options: &[&str]) -> Self {
        Self::start_patiently(program, options, PATIENCE)
    }

    /// As [`start`](Self::start), where anything may take as long as `patience`.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_patiently(program: &Path, options: &[&str], patience: Duration) -> Self {
        let folder = tempfile::tempdir().expect("there is a temporary folder");
        let socket = folder.path().join("api");
        let mut command = Command::new(program);
        command
            .arg("--api-socket")
            .arg(format!("path={}", socket.display()))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        restore_defaults(&mut command);
        let mut child = command.spawn().expect("the VMM starts");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let errors = Output::collect(stderr, &folder.path().join("stderr")).expect("a log file");
        let mut server = Self {
            child,
            socket,
            errors,
            folder,
            patience,
        };
        server.wait_until("socket", |server| {
            let status = server.status();
            assert!(status.is_none(), "{status:?}: {}", server.errors());
            UnixStream::connect(&server.socket).is_ok()
        });
        server
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A folder for files of a test; it goes with the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed on standard error.
    pub fn errors(&self) -> String {
        self.errors.text()
    }

    /// A connection of its own.
    ///
    /// # Panics
    /// If there is none.
    pub fn connect(&self) -> Connection {
        Connection::to(&self.socket, self.patience)
    }

    /// Asks for something, over a new connection.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn put(&self, route: &str, body: &Value) -> Answer {
        self.connect()
            .request("PUT", route, Some(&body.to_string()))
    }

    /// Asks for something that needs no body.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn act(&self, route: &str) -> Answer {
        self.connect().request("PUT", route, None)
    }

    /// Reads something.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn get(&self, route: &str) -> Answer {
        self.connect().request("GET", route, None)
    }

    /// What `vm.info` says.
    ///
    /// # Panics
    /// If it says nothing.
    pub fn info(&self) -> Value {
        self.get("vm.info").expect(200).json()
    }

    /// Waits until `condition` holds.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            let errors = self.errors();
            assert!(start.elapsed() < self.patience, "no {what}: {errors}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until `vm.info` gives a state.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn wait_for_state(&mut self, state: &str) {
        self.wait_until(state, |server| server.info()["state"] == state);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_until("end", |server| server.status().is_some());
        self.errors.finish();
        self.status().expect("it has ended")
    }

    /// How it has ended, if it has.
    ///
    /// # Panics
    /// If it is not our child.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the VMM is our child")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Both fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to an API.
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    fn to(socket: &Path, patience: Duration) -> Self {
        let stream = UnixStream::connect(socket).expect("the VMM listens");
        stream
            .set_read_timeout(Some(patience))
            .expect("a timeout can be set");
        Self(BufReader::new(stream))
    }

    /// Its stream, for what no client should do.
    pub fn stream(&mut self) -> &mut UnixStream {
        self.0.get_mut()
    }

    /// Sends a request and reads the answer.
    ///
    /// # Panics
    /// If there is none.
    pub fn request(&mut self, method: &str, route: &str, body: Option<&str>) -> Answer {
        let text = request(method, route, body);
        self.stream()
            .write_all(text.as_bytes())
            .expect("it is read");
        self.answer()
    }

    /// Reads an answer.
    ///
    /// # Panics
    /// If there is none, or it is not HTTP.
    pub fn answer(&mut self) -> Answer {
        let status_line = self.line();
        let status = status_line.strip_prefix("HTTP/1.1 ");
        let status = status.and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not HTTP: {status_line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("{line:?}"));
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        if let Some(length) = answer.header("content-length") {
            answer.body = vec![0; length.parse().expect("a length is a number")];
            self.0.read_exact(&mut answer.body).expect("a whole body");
        }
        answer
    }

    /// Whether the other side has closed.
    pub fn is_closed(&mut self) -> bool {
        self.0.fill_buf().is_ok_and(<[u8]>::is_empty)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        let text = line.strip_suffix("\r\n");
        text.unwrap_or_else(|| panic!("cut off: {line:?}"))
            .to_owned()
    }
}

/// The bytes of a request.
pub fn request(method: &str, route: &str, body: Option<&str>) -> String {
    let mut text = format!("{method} /api/v1/{route} HTTP/1.1\r\nHost: localhost\r\n");
    if let Some(body) = body {
        text += &format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
    }
    text + "\r\n" + body.unwrap_or_default()
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let header = headers.find(|(header, _)| header == name);
        header.map(|(_, value)| value.as_str())
    }

    /// The answer, if it has that status.
    ///
    /// # Panics
    /// If it has another.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    /// The body of an error: what went wrong, and what that came from.
    ///
    /// # Panics
    /// If it is no list of texts.
    pub fn reasons(&self) -> Vec<String> {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no list: {}", self.text()))
    }
}
