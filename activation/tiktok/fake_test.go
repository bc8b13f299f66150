package tiktok_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// The fake refuses, or notes, every mistake that it is there to find.
func TestTheFakeFindsMistakes(t *testing.T) {
	t.Parallel()
	const device = "5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25"
	ada := activation.Person{ID: partnertest.Profile(1), Traits: map[string]jsontext.Value{
		"email": jsontext.Value(`"Ada+1 @Example.com"`), "phone": jsontext.Value(`"+14155550100"`), "idfa": jsontext.Value(`"` + device + `"`),
	}}
	eve := activation.Person{ID: partnertest.Profile(2), Traits: map[string]jsontext.Value{"email": jsontext.Value(`"eve@example.com"`)}}
	var (
		email, phone, idfa = partnertest.Hex("ada+1@example.com"), partnertest.Hex("+14155550100"), partnertest.Hex(strings.ToLower(device))
		hers               = partnertest.Hex("eve@example.com")
	)
	cell := func(id string) string { return fmt.Sprintf(`{"id":%q,"audience_ids":["1770001"]}`, id) }
	body := func(schema, rows string) string {
		return fmt.Sprintf(`{"advertiser_ids":[%q],"action":"add","id_schema":[%s],"batch_data":[%s]}`, partnertest.TikTokAdvertiser, schema, rows)
	}
	one := body(`"EMAIL_SHA256"`, "["+cell(email)+"]")
	for name, tt := range map[string]struct {
		method, path, body string
		header             map[string]string // besides the token; "" leaves one out
		options            partnertest.TikTokOptions
		status, code       int
		violation          string // a part of what is noted; "" for nothing
		member             bool
	}{
		"nothing":                      {body: one, member: true},
		"all columns of one person":    {body: body(`"EMAIL_SHA256","PHONE_SHA256","IDFA_SHA256"`, "["+cell(email)+","+cell(phone)+","+cell(idfa)+"]"), member: true},
		"the token where others do":    {body: one, header: map[string]string{"Access-Token": "", "Authorization": "Bearer 9f3c5e1a7b2d4c6e8f0a"}, code: 40105, violation: "Authorization"},
		"no token":                     {body: one, header: map[string]string{"Access-Token": ""}, code: 40105, violation: "Access-Token"},
		"a wrong token":                {body: one, header: map[string]string{"Access-Token": "x"}, code: 40105},
		"a wrong content type":         {body: one, header: map[string]string{"Content-Type": "text/plain"}, code: 40002, violation: "application/json"},
		"an unknown path":              {path: "/segment/mappings/", body: one, status: 404, violation: "is not known"},
		"no slash at the end":          {path: "/segment/mapping", body: one, status: 404, violation: "is not known"},
		"a wrong method":               {method: http.MethodPut, body: one, status: 404, violation: "is not known"},
		"a query":                      {path: "/segment/mapping/?a=1", body: one, code: 40002, violation: "query"},
		"no JSON":                      {body: "x", code: 40002, violation: "cannot be read"},
		"an unknown member":            {body: strings.Replace(one, `{`, `{"x":1,`, 1), code: 40002, violation: "cannot be read"},
		"a member twice":               {body: strings.Replace(one, `{`, `{"action":"add",`, 1), code: 40002, violation: "cannot be read"},
		"an unknown action":            {body: strings.Replace(one, `"add"`, `"remove"`, 1), code: 40002, violation: "action"},
		"no schema":                    {body: body(``, "[]"), code: 40002, violation: "id_schema is empty"},
		"an unknown kind":              {body: body(`"GAID_SHA256"`, "["+cell(email)+"]"), code: 40002, violation: "id_schema"},
		"an unknown hash":              {body: body(`"EMAIL_MD5"`, "["+cell(email)+"]"), code: 40002, violation: "id_schema"},
		"a kind twice":                 {body: body(`"EMAIL_SHA256","EMAIL_SHA256"`, "["+cell(email)+",{}]"), code: 40002, violation: "twice"},
		"no rows":                      {body: body(`"EMAIL_SHA256"`, ""), code: 40002, violation: "0 rows"},
		"too many rows":                {options: partnertest.TikTokOptions{MaxRows: 1}, body: body(`"EMAIL_SHA256"`, "["+cell(email)+"],["+cell(hers)+"]"), code: 40002, violation: "2 rows"},
		"a cell that is left out":      {body: body(`"EMAIL_SHA256","PHONE_SHA256"`, "["+cell(email)+"]"), code: 40002, violation: "columns"},
		"an empty row":                 {body: body(`"EMAIL_SHA256","PHONE_SHA256"`, "[{},{}]"), code: 40002, violation: "empty"},
		"an address as it is":          {body: body(`"EMAIL_SHA256"`, "["+cell("ada+1@example.com")+"]"), code: 40002, violation: "e-mail address"},
		"an MD5 for a SHA-256":         {body: body(`"IDFA_SHA256"`, "["+cell("a1a71d7132ffc45541100d58092ac49e")+"]"), code: 40002, violation: "no such hash"},
		"a SHA-256 for an MD5":         {body: body(`"IDFA_MD5"`, "["+cell(idfa)+"]"), code: 40002, violation: "no such hash"},
		"a hash in capitals":           {body: body(`"EMAIL_SHA256"`, "["+cell(strings.ToUpper(email))+"]"), code: 40002, violation: "no such hash"},
		"a number for an id":           {body: body(`"EMAIL_SHA256"`, `[{"id":1,"audience_ids":["1770001"]}]`), code: 40002, violation: "cannot be read"},
		"a number for an audience":     {body: body(`"EMAIL_SHA256"`, fmt.Sprintf(`[{"id":%q,"audience_ids":[1770001]}]`, email)), code: 40002, violation: "cannot be read"},
		"no audience":                  {body: body(`"EMAIL_SHA256"`, fmt.Sprintf(`[{"id":%q,"audience_ids":[]}]`, email)), code: 40002, violation: "no audience"},
		"an unknown audience":          {body: strings.ReplaceAll(one, "1770001", "1779999"), code: 40002, violation: "does not exist"},
		"another advertiser's":         {body: strings.ReplaceAll(one, "1770001", "1770002"), code: 40001, violation: "another advertiser's"},
		"another advertiser":           {body: strings.ReplaceAll(one, partnertest.TikTokAdvertiser, partnertest.TikTokOtherAdvertiser), code: 40001},
		"no advertiser":                {body: strings.ReplaceAll(one, `"`+partnertest.TikTokAdvertiser+`"`, ""), code: 40002, violation: "advertiser_ids is empty"},
		"a phone number for an e-mail": {body: body(`"EMAIL_SHA256"`, "["+cell(phone)+"]"), violation: "belongs into the column PHONE_SHA256"},
		"columns that were mixed up":   {body: body(`"PHONE_SHA256","EMAIL_SHA256"`, "["+cell(email)+","+cell(phone)+"]"), violation: "belongs into the column"},
		"a space in an address":        {body: body(`"EMAIL_SHA256"`, "["+cell(partnertest.Hex("ada+1 @example.com"))+"]"), violation: "has a space in it"},
		"capitals in an address":       {body: body(`"EMAIL_SHA256"`, "["+cell(partnertest.Hex("Ada+1@Example.com"))+"]"), violation: "has capital letters in it"},
		"another form of an address":   {body: body(`"EMAIL_SHA256"`, "["+cell(partnertest.Hex("ada@example.com"))+"]"), violation: "is the form without_tags"},
		"a number without plus":        {body: body(`"PHONE_SHA256"`, "["+cell(partnertest.Hex("14155550100"))+"]"), violation: "lacks its plus sign"},
		"a number with plus":           {options: partnertest.TikTokOptions{PhoneFormat: "digits"}, body: body(`"PHONE_SHA256"`, "["+cell(phone)+"]"), violation: "has a plus sign"},
		"a device in capitals":         {body: body(`"IDFA_SHA256"`, "["+cell(partnertest.Hex(device))+"]"), violation: "in the letters it came in"},
		"hashed twice":                 {body: body(`"EMAIL_SHA256"`, "["+cell(partnertest.Hex(email))+"]"), violation: "is hashed twice"},
		"the hash of nothing":          {body: body(`"EMAIL_SHA256"`, "["+cell(partnertest.Hex(""))+"]"), violation: "is the hash of nothing"},
		"nobody's":                     {body: body(`"EMAIL_SHA256"`, "["+cell(partnertest.Hex("x@example.com"))+"]"), violation: "is not right for anybody"},
		"two people in a row":          {body: body(`"EMAIL_SHA256","PHONE_SHA256"`, "["+cell(hers)+","+cell(phone)+"]"), violation: "mixes the identifiers", member: true},
		"an audience that is deleted": {
			path: "/segment/audience/", body: `{"custom_audience_name":"x","advertiser_id":"7001234567890123456","action":"delete"}`,
			code: 40002, violation: "action",
		},
		"a name that is cut": {
			path: "/segment/audience/", body: fmt.Sprintf(`{"custom_audience_name":%q,"advertiser_id":"7001234567890123456","action":"create"}`, strings.Repeat("x", 71)),
			violation: "is cut",
		},
		"a second audience of a name": {
			path: "/segment/audience/", body: `{"custom_audience_name":"ours","advertiser_id":"7001234567890123456","action":"create"}`,
			violation: "a second audience",
		},
		"a page that is too large":  {method: http.MethodGet, path: "/dmp/custom_audience/list/?advertiser_id=7001234567890123456&page=1&page_size=101", code: 40002, violation: "page"},
		"an unknown parameter":      {method: http.MethodGet, path: "/dmp/custom_audience/list/?advertiser_id=7001234567890123456&page=1&page_size=1&x=1", code: 40002, violation: "x is not known"},
		"an id that is not a list":  {method: http.MethodGet, path: "/dmp/custom_audience/get/?advertiser_id=7001234567890123456&custom_audience_ids=1770001", code: 40002, violation: "list of texts"},
		"a parameter that is empty": {method: http.MethodGet, path: "/dmp/custom_audience/get/?advertiser_id=7001234567890123456&custom_audience_ids=", code: 40002, violation: "custom_audience_ids"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, f := start(t, tt.options)
			f.Seed(ada, eve)
			f.Audience(partnertest.TikTokAdvertiser, "ours")
			f.Audience(partnertest.TikTokOtherAdvertiser, "theirs")
			method, path := tt.method, tt.path
			if method == "" {
				method = http.MethodPost
			}
			if path == "" {
				path = "/segment/mapping/"
			}
			header := map[string]string{"Access-Token": f.Token, "Content-Type": "application/json"}
			maps.Copy(header, tt.header)
			answer, status := partnertest.Ask(t, method, f.URL+path, tt.body, header)
			if tt.status == 0 {
				tt.status = 200
			}
			if want := fmt.Sprintf(`{"code":%d,`, tt.code); status != tt.status || status == 200 && !strings.HasPrefix(answer, want) {
				t.Errorf("the answer is %d %s, want %d %s", status, answer, tt.status, want)
			}
			noted := strings.Join(f.Violations(), "\n")
			if (noted == "") != (tt.violation == "") || !strings.Contains(noted, tt.violation) {
				t.Errorf("noted is %q, want %q", noted, tt.violation)
			}
			if got := len(f.Members(partnertest.Audience{ID: "1770001"})) > 0; got != tt.member {
				t.Errorf("somebody is in the audience: %v, want %v", got, tt.member)
			}
		})
	}
}

// Of a partial success the fake keeps who was taken, and tells nobody who was not.
func TestTheFakeTakesAPart(t *testing.T) {
	t.Parallel()
	p, f := start(t, partnertest.TikTokOptions{})
	id := f.Audience(partnertest.TikTokAdvertiser, "ours")
	message := about(t, p, f, id, 3)
	f.Refuse(partnertest.Profile(1), true)
	if o := p.Send(t.Context(), at(f), message); o.Class != activation.Split || !o.Unknown {
		t.Errorf("Send = %+v", o)
	}
	if n := len(f.Members(partnertest.Audience{ID: id})); n != 2 || len(f.Violations()) > 0 {
		t.Errorf("%d are in the audience, want 2; noted is %q", n, f.Violations())
	}
}
