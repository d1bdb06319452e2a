{{/* The namespace of the test's pods. It must never be the release's own, which Helm would delete before the test; so a name
that would be too long is not cut off. `left_test.rs` knows it, too. */}}
{{- define "ebbtide.test.namespace" -}}
{{- if gt (len .Release.Namespace) 50 -}}
ebbtide-connectivity
{{- else -}}
{{ .Release.Namespace }}-connectivity
{{- end -}}
{{- end -}}

{{- define "ebbtide.test.labels" -}}
app.kubernetes.io/name: ebbtide-connectivity
app.kubernetes.io/version: {{ .Chart.AppVersion }}
{{- end -}}

{{/* An object that exists during the test alone: the order. */}}
{{- define "ebbtide.test.hook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end -}}

{{/* What a binding binds: a Role, or a ClusterRole, and the test's account. */}}
{{- define "ebbtide.test.bind" -}}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ index . 1 }}
  name: ebbtide-connectivity
subjects:
  - kind: ServiceAccount
    name: ebbtide-connectivity
    namespace: {{ (index . 0).Release.Namespace | quote }}
{{- end -}}
