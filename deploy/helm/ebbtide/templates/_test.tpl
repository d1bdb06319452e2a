{{/* The namespace of the test's pods: a label's length at most. */}}
{{- define "ebbtide.test.namespace" -}}
{{ printf "%s-connectivity" .Release.Namespace | trunc 63 }}
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
