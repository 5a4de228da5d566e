{{/* The name of everything: that of the release. */}}
{{- define "digitserve.name" -}}
{{ .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "digitserve.selector" -}}
app.kubernetes.io/name: digitserve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "digitserve.labels" -}}
{{ include "digitserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "digitserve.model" -}}
/model/{{ .Values.model.activation }}-{{ .Values.model.version }}.onnx
{{- end }}

{{- define "digitserve.hardened" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The service's options. Values override them. */}}
{{- define "digitserve.options" -}}
{{- $options := dict
  "DIGITS_MODEL" (include "digitserve.model" .)
  "DIGITS_HOST" "0.0.0.0"
  "DIGITS_PORT" "50051"
  "DIGITS_METRICS_HOST" "0.0.0.0"
  "DIGITS_METRICS_PORT" "9464"
  "DIGITS_DRAIN_WAIT" "10"
  "DIGITS_SHUTDOWN_GRACE" "10"
  "DIGITS_MAX_CONNECTION_AGE" "300" }}
{{- if .Values.tls.enabled }}
{{- $_ := set $options "DIGITS_TLS_CERT" "/tls/tls.crt" }}
{{- $_ := set $options "DIGITS_TLS_KEY" "/tls/tls.key" }}
{{- end }}
{{- if .Values.tokens.enabled }}
{{- $_ := set $options "DIGITS_TOKENS_FILE" "/tokens/tokens" }}
{{- end }}
{{- range $name, $value := mergeOverwrite $options .Values.options }}
{{ $name }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{- define "digitserve.probe" -}}
{{- if .Values.tls.enabled -}}
httpGet: {path: /healthz, port: metrics}
{{- else -}}
grpc: {port: 50051, service: digits.v1.DigitService}
{{- end }}
{{- end }}
