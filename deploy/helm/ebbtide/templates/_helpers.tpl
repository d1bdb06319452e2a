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

{{/* Where metrics and probes are served at a port: the option's value. */}}
{{- define "ebbtide.metrics.address" -}}
{{- if not .root.Values.metrics.enabled -}}
off
{{- else if eq .root.Values.metrics.listen "node" -}}
[$(NODE_IP)]:{{ .port }}
{{- else -}}
127.0.0.1:{{ .port }}
{{- end -}}
{{- end -}}

{{/* The same, as a probe has it. A pod in the host's network has the node's address. */}}
{{- define "ebbtide.metrics.probe" -}}
httpGet:
  path: /readyz
  port: {{ .port }}
  {{- if ne .root.Values.metrics.listen "node" }}
  host: 127.0.0.1
  {{- end }}
{{- end -}}

{{/* The node's address, where it is needed. */}}
{{- define "ebbtide.metrics.env" -}}
{{- if and .Values.metrics.enabled (eq .Values.metrics.listen "node") }}
- name: NODE_IP
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}
{{- end -}}

{{/* The agent's configuration file. */}}
{{- define "ebbtide.config" -}}
{{- $config := .Values.agent.config -}}
{{- if .Values.ipam.enableStatefulSet -}}
{{- $config = merge (dict "stickyAddresses" true) $config -}}
{{- end -}}
{{- toYaml $config -}}
{{- end }}

{{/* Where the API server is, as variables of the environment, if it is not where pods find it. */}}
{{- define "ebbtide.api-server.env" -}}
{{- with .Values.agent.apiServer.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.agent.apiServer.port }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* The security context of a container that talks to servers and needs nothing of the node. */}}
{{- define "ebbtide.unprivileged" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}
