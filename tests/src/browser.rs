//! Debian's chromium, which draws a page: to its end ([`Browser::command`]), or driven by keys ([`Session`], by the DevTools
//! protocol).

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{
    patience::eventually,
    skip::{Need, skip},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The variable with a directory for pictures, which a person looks at.
const PICTURES: &str = "EBBTIDE_PAGE_PICTURES";

/// The browser, with a profile of its own.
#[derive(Debug)]
pub struct Browser {
    program: PathBuf,
    home: TempDir,
}

impl Browser {
    /// Returns the browser; `None`, after a skip, without it.
    ///
    /// # Errors
    /// If there is no place for its profile.
    pub fn find() -> Result<Option<Self>> {
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path).map(|directory| directory.join("chromium"));
        let Some(program) = found.into_iter().find(|path| path.is_file()) else {
            skip(Need::Chromium, "chromium is not in the search path");
            return Ok(None);
        };
        let home = TempDir::with_prefix("ebbtide-chromium-")?;
        Ok(Some(Self { program, home }))
    }

    /// Returns the directory of its profile, for further files.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Returns a call of it that begins with `start`, which asks others as little as it can be told.
    pub fn command(&self, start: impl FnOnce(&Path) -> Command) -> Command {
        let mut command = start(&self.program);
        command
            .env("HOME", self.home())
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                "--no-proxy-server",
                "--window-size=1280,1500",
            ])
            .arg(format!("--user-data-dir={}/profile", self.home().display()));
        command
    }

    /// Returns the directory for pictures, if somebody wants to look at them.
    #[must_use]
    pub fn pictures() -> Option<PathBuf> {
        env::var_os(PICTURES).map(PathBuf::from)
    }
}

/// A browser that runs, with one page. It ends with this.
#[derive(Debug)]
pub struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    last: u64,
    page: String,
    _browser: Browser,
}

impl Session {
    /// Opens a page.
    ///
    /// # Errors
    /// If the browser does not start.
    pub fn open(browser: Browser, url: &str) -> Result<Self> {
        // It is told what to do by descriptor 3, and answers by 4.
        let mut child = browser
            .command(|program| {
                let mut shell = Command::new("sh");
                let script = r#"exec "$@" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null"#;
                shell.args(["-c", script, "sh"]).arg(program);
                shell
            })
            .args(["--remote-debugging-pipe", "about:blank"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("run chromium")?;
        let input = child.stdin.take().context("its input")?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let mut session = Self {
            child,
            input,
            output,
            last: 0,
            page: String::new(),
            _browser: browser,
        };
        let made = session.call("Target.createTarget", &json!({"url": url}))?;
        let target = json!({"targetId": made["targetId"], "flatten": true});
        let attached = session.call("Target.attachToTarget", &target)?;
        session.page = attached["sessionId"].as_str().context("no session")?.into();
        Ok(session)
    }

    /// Calls a method of the protocol, and waits for its answer.
    ///
    /// # Errors
    /// If the browser ends, or refuses.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        self.last += 1;
        let mut call = json!({"id": self.last, "method": method, "params": parameters});
        if !self.page.is_empty() {
            call["sessionId"] = json!(self.page);
        }
        self.input.write_all(call.to_string().as_bytes())?;
        self.input.write_all(b"\0")?;
        loop {
            let mut answer = Vec::new();
            self.output.read_until(0, &mut answer)?;
            ensure!(answer.pop() == Some(0), "{method}: the browser has ended");
            let mut answer: Value = serde_json::from_slice(&answer)?;
            if answer["id"] != json!(self.last) {
                continue;
            }
            if let Some(error) = answer.get("error") {
                bail!("{method}: {error}");
            }
            return Ok(answer["result"].take());
        }
    }

    /// Returns what an expression is on the page.
    ///
    /// # Errors
    /// If it throws.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", &asked)?;
        ensure!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression is true.
    ///
    /// # Errors
    /// If it is not in time; the error says what the page says.
    pub fn wait(&mut self, expression: &str) -> Result<()> {
        eventually(expression, || {
            let is = self.value(expression)?;
            if is == json!(true) {
                return Ok(());
            }
            let said = self.value("document.querySelector('main').innerText")?;
            bail!("{is}: {said}")
        })
    }

    /// Presses a key: one character, or a name as `ArrowRight`.
    ///
    /// # Errors
    /// If the browser ends.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let text = match key {
            "Enter" => "\r",
            _ if key.chars().count() == 1 => key,
            _ => "",
        };
        let code = match key {
            "Enter" => 13,
            "Tab" => 9,
            "Escape" => 27,
            "ArrowLeft" => 37,
            "ArrowRight" => 39,
            _ => 0,
        };
        let mut event = json!({"type": "keyDown", "key": key, "windowsVirtualKeyCode": code});
        if !text.is_empty() {
            event["text"] = json!(text);
        }
        self.call("Input.dispatchKeyEvent", &event)?;
        event["type"] = json!("keyUp");
        self.call("Input.dispatchKeyEvent", &event).map(drop)
    }

    /// Says whether the person's system is dark.
    ///
    /// # Errors
    /// If the browser ends.
    pub fn set_dark(&mut self, is_dark: bool) -> Result<()> {
        let value = if is_dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.call("Emulation.setEmulatedMedia", &features).map(drop)
    }

    /// Takes a picture of the whole page, if somebody wants to look at it.
    ///
    /// # Errors
    /// If there is none.
    pub fn picture(&mut self, name: &str) -> Result<()> {
        let Some(directory) = Browser::pictures() else {
            return Ok(());
        };
        let file = directory.join(format!("{name}.png"));
        // Its header stays at the top of the window, and is drawn there.
        self.value("scrollTo(0, 0)")?;
        let whole = json!({"captureBeyondViewport": true});
        let answer = self.call("Page.captureScreenshot", &whole)?;
        let data = answer["data"].as_str().context("no picture")?;
        let text = file.with_extension("base64");
        fs::write(&text, data)?;
        let status = Command::new("base64")
            .arg("-d")
            .arg(&text)
            .stdout(fs::File::create(&file)?)
            .status()?;
        ensure!(status.success(), "base64: {status}");
        Ok(fs::remove_file(&text)?)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
