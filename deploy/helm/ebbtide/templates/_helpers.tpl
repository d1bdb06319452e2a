{{- define "ebbtide.image" -}}
{{- $registry := .Values.global.imageRegistryOverride | default .Values.image.registry -}}
{{- $name := printf "%s/%s" $registry .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{ $name }}@{{ .Values.image.digest }}
{{- else -}}
{{ $name }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "ebbtide.labels" -}}
app.kubernetes.io/name: ebbtide
app.kubernetes.io/version: {{ .Chart.AppVersion }}
{{- end -}}

{{- define "ebbtide.controller.labels" -}}
app.kubernetes.io/name: ebbtide-controller
app.kubernetes.io/version: {{ .Chart.AppVersion }}
{{- end -}}

{{- define "ebbtide.cloud-controller.labels" -}}
app.kubernetes.io/name: ebbtide-cloud-controller
app.kubernetes.io/version: {{ .Chart.AppVersion }}
{{- end -}}

{{/* The agent's configuration file. */}}
{{- define "ebbtide.config" -}}
{{- $config := .Values.agent.config -}}
{{- if .Values.ipam.enableStatefulSet -}}
{{- $config = merge (dict "stickyAddresses" true) $config -}}
{{- end -}}
{{- toYaml $config -}}
{{- end }}
