//! Requests by an account, and the API server's verdict on them.

use std::path::Path;

use anyhow::{Context as _, Result};
use ebbtide_kube::connect;
use kube::{
    Client,
    api::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams},
    core::Request,
};
use serde_json::Value;
use tokio::runtime::Runtime;

/// The verb of a request, with its body.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Get,
    List,
    Create(Value),
    /// As [`Act::Create`], as a dry run.
    DryRun(Value),
    /// A merge patch.
    Patch(Value),
    /// Server-side apply.
    Apply(Value),
    Replace(Value),
    Delete,
}

/// A request: to the path of a kind for an object without a name yet, else to the path of the object.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) what: &'static str,
    pub(crate) path: String,
    pub(crate) act: Act,
}

pub(crate) fn attempt(what: &'static str, path: impl Into<String>, act: Act) -> Attempt {
    let path = path.into();
    Attempt { what, path, act }
}

/// The verdict on a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    /// Refused by a role or a policy, with the reason.
    Refused(String),
    /// Any other failure, which tells nothing about rights.
    Failed(String),
}

/// The holder of an account's token.
pub(crate) struct Holder {
    client: Client,
    runtime: Runtime,
}

impl Holder {
    pub(crate) fn of(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let client = runtime.block_on(connect(Some(kubeconfig)))?;
        Ok(Self { client, runtime })
    }

    /// Sends a request and returns the API server's answer.
    pub(crate) fn ask(&self, attempt: &Attempt) -> kube::Result<Value> {
        let (kind, name) = attempt.path.rsplit_once('/').unwrap_or_default();
        let (kind, whole) = (Request::new(kind), Request::new(attempt.path.as_str()));
        let bytes = |value: &Value| value.to_string().into_bytes();
        let post = PostParams::default();
        let request = match &attempt.act {
            Act::Get => kind.get(name, &GetParams::default()),
            Act::List => whole.list(&ListParams::default()),
            Act::Create(object) => whole.create(&post, bytes(object)),
            Act::DryRun(object) => {
                let dry = PostParams {
                    dry_run: true,
                    ..post
                };
                whole.create(&dry, bytes(object))
            }
            Act::Patch(patch) => kind.patch(name, &PatchParams::default(), &Patch::Merge(patch)),
            Act::Apply(object) => {
                let apply = PatchParams::apply("ebbtide").force();
                kind.patch(name, &apply, &Patch::Apply(object))
            }
            Act::Replace(object) => kind.replace(name, &post, bytes(object)),
            Act::Delete => kind.delete(name, &DeleteParams::default()),
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.runtime.block_on(self.client.request(request))
    }

    pub(crate) fn verdict(&self, attempt: &Attempt) -> Verdict {
        match self.ask(attempt) {
            Ok(_) => Verdict::Done,
            Err(kube::Error::Api(status)) => {
                let said = status.message.clone();
                let by_policy = said.contains("denied request");
                // An expression that cannot be evaluated refuses as well, but without a useful message.
                let broken = said.contains("resulted in error");
                if (status.code == 403 || by_policy) && !broken {
                    Verdict::Refused(said)
                } else {
                    Verdict::Failed(format!("{}: {said}", status.code))
                }
            }
            Err(e) => Verdict::Failed(e.to_string()),
        }
    }

    /// Returns the attempts that do not end as expected, each with its verdict.
    pub(crate) fn wrong(&self, attempts: &[Attempt], refused: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        for each in attempts {
            let verdict = self.verdict(each);
            let as_it_should = match &verdict {
                Verdict::Done => !refused,
                Verdict::Refused(_) => refused,
                Verdict::Failed(_) => false,
            };
            if !as_it_should {
                let act = format!("{:?}", each.act);
                let act = act.split(['(', ' ']).next().unwrap_or_default();
                wrong.push(format!("{} ({act} {}): {verdict:?}", each.what, each.path));
            }
        }
        wrong
    }

    /// Returns what the account may do in a namespace besides reading: `VERB RESOURCE.GROUP`, with `=NAME` if it is
    /// restricted to names.
    pub(crate) fn may_write(&self, namespace: &str) -> Result<Vec<String>> {
        let review = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
        let review = self.ask(&attempt("rules", path, Act::Create(review)))?;
        let rules = review["status"]["resourceRules"].as_array();
        let texts = |list: &Value| -> Vec<String> {
            let list = list.as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut all = Vec::new();
        for rule in rules.context("no rules")? {
            let names = texts(&rule["resourceNames"]).join(",");
            for group in texts(&rule["apiGroups"]) {
                // Everybody may ask this about themselves.
                if group.ends_with("authorization.k8s.io") || group == "authentication.k8s.io" {
                    continue;
                }
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        if !["get", "list", "watch"].contains(&verb.as_str()) {
                            let name = if names.is_empty() { "" } else { "=" };
                            all.push(format!("{verb} {resource}.{group}{name}{names}"));
                        }
                    }
                }
            }
        }
        all.sort();
        all.dedup();
        Ok(all)
    }
}
