package matchkey_test

import (
	"crypto/md5"
	"crypto/sha1"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/mubatch/mubatch/activation/matchkey"
)

// The vectors are the partners' own, from their documentation, the tests of their libraries, or integrations that call
// them; "ours" where only the normalised text is published.
func TestEmailVectors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		partner string
		recipe  matchkey.Recipe
		raw     string
		text    string
		hash    string
		base64  string
	}{
		{"Meta", matchkey.Meta, "John_Smith@gmail.com", "john_smith@gmail.com", "62a14e44f765419d10fea99367361a727c12365e2520f32218d505ed9aa0f62f", ""},
		{"Meta", matchkey.Meta, "foo@fb.com\t\r\n\x00\v.", "foo@fb.com", "1ee4ddb6421ca98465fde8f62bb0155c9d9277a73380d414be6d90743b8a5ed7", ""},
		{"Google", matchkey.Google, "  ALEXZ@example.com  ", "alexz@example.com", "509e933019bb285a134a9334b8bb679dff79d0ce023d529af4bd744d47b4fd8a", "UJ6TMBm7KFoTSpM0uLtnnf950M4CPVKa9L10TUe0/Yo="},
		{"Google", matchkey.Google, "dana@example.com", "dana@example.com", "07e2f1394b0ea80e2adca010ea8318df697001a005ba7452720edda4b0ce57b3", "B+LxOUsOqA4q3KAQ6oMY32lwAaAFunRScg7dpLDOV7M="},
		{"Google", matchkey.Google, "Jefferson.Loves.hiking@gmail.com", "jeffersonloveshiking@gmail.com", "515d2f967f73864e76937ab2b897210a86fd286016903b1b08c3da07c75f513e", "UV0vln9zhk52k3qyuJchCob9KGAWkDsbCMPaB8dfUT4="},
		{"Google", matchkey.Google, "j.e.f..ferson.Loves.hiking@googlemail.com", "jeffersonloveshiking@googlemail.com", "2824967181c781aced84c32bf8bb51fc6401202eeff88263776f63c99df9314c", "KCSWcYHHgazthMMr+LtR/GQBIC7v+IJjd29jyZ35MUw="},
		{"Google", matchkey.Google, "user.name+NYC@Example.com", "user.name+nyc@example.com", "f109a2a632fbcea5fc82049f50beed3d8621bf9034399f437fb622222acccdac", "8QmipjL7zqX8ggSfUL7tPYYhv5A0OZ9Df7YiIirMzaw="},
		{"UID2", matchkey.UID2, "user2@example.com", "user2@example.com", "2b3b2b9ce842ab8b6a6c614cb1f9604bb8a0d502d1af49c526b72b10894e95b5", "KzsrnOhCq4tqbGFMsflgS7ig1QLRr0nFJrcrEIlOlbU="},
		{"UID2", matchkey.UID2, "MyEmail@example.com", "myemail@example.com", "16c18d336f0b250f0e2d907452ceb9658a74ecdae8bc94864c23122a72cc27a5", "FsGNM28LJQ8OLZB0Us65ZYp07NrovJSGTCMSKnLMJ6U="},
		{"UID2", matchkey.UID2, "JANESAOIRSE@example.com", "janesaoirse@example.com", "d6670e7a92007f1b5ff785f1fc81e53aa6d3d7bd06bdf5c473cdc7286c284b6d", "1mcOepIAfxtf94Xx/IHlOqbT170GvfXEc83HKGwoS20="},
		{"UID2", matchkey.UID2, "jane.saoirse@example.com", "jane.saoirse@example.com", "b196432c7b989a2ca91c83799957c515da53e6c13abf20b78fea94f117e90bf8", "sZZDLHuYmiypHIN5mVfFFdpT5sE6vyC3j+qU8RfpC/g="},
		{"UID2", matchkey.UID2, "JANE.SAOIRSE@gmail.com", "janesaoirse@gmail.com", "92ee26057ed9dea2535d6c8b141d48373932476599196e00352254896db5888f", "ku4mBX7Z3qJTXWyLFB1INzkyR2WZGW4ANSJUiW21iI8="},
		{"UID2", matchkey.UID2, "JaneSaoirse+Work@gmail.com", "janesaoirse@gmail.com", "92ee26057ed9dea2535d6c8b141d48373932476599196e00352254896db5888f", "ku4mBX7Z3qJTXWyLFB1INzkyR2WZGW4ANSJUiW21iI8="},
		{"UID2", matchkey.UID2, "j.e.f@googlemail.com", "j.e.f@googlemail.com", "", ""}, // its rule names gmail.com alone
		{"TikTok", matchkey.TikTok, "van@abc.com ", "van@abc.com", "2048acfa84a01121060ca2fc8a673a76d427176dc37224d4408c21973bd90e5c", ""},
		{"Microsoft", matchkey.Microsoft, "demo@segment.com", "demo@segment.com", "5a95f052958dac8ed1d66d74eb481b3ccdbbc953b583c5ff0325be6b091d6281", ""},
		{"X", matchkey.X, "a+1@xyz.com", "a+1@xyz.com", "27a1b87036e9b0f43235026e7cb1493f1838b6fe41965ea04486d82e499f8401", ""},
		{"LinkedIn", matchkey.LinkedIn, "testing@testing.com", "testing@testing.com", "584c4423c421df49955759498a71495aba49b8780eb9387dff333b6f0982c777", ""},
		{"LinkedIn", matchkey.LinkedIn, "random@rudderstack.com", "random@rudderstack.com", "52ac4b9ef8f745e007c19fac81ddb0a3f50b20029f6699ca1406225fc217f392", ""},
		{"Reddit", matchkey.Reddit, "Al.ice+Apple@Example.Com", "alice@example.com", "ff8d9819fc0e12bf0d24892e45987e249a28dce836a85cad60e28eaaa8c6d976", ""},
		{"Yahoo", matchkey.Yahoo, "bugsbunny@warnerbros.com", "bugsbunny@warnerbros.com", "67e28cdcc3e845d3a4da05ca9fe5ddb7320a83b4cc2167f0555a3b04f63511e3", ""},
	} {
		got, ok := tc.recipe.Email(tc.raw)
		switch {
		case !ok || got.String() != tc.text:
			t.Errorf("%s: %q became %q, %t, want %q", tc.partner, tc.raw, got, ok, tc.text)
		case tc.hash != "" && got.Hex() != tc.hash:
			t.Errorf("%s: %q: %s, want %s", tc.partner, tc.raw, got.Hex(), tc.hash)
		case tc.base64 != "" && got.Base64() != tc.base64:
			t.Errorf("%s: %q: %s, want %s", tc.partner, tc.raw, got.Base64(), tc.base64)
		}
	}
}

func TestPhoneVectors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		partner      string
		recipe       matchkey.Recipe
		raw, country string
		text         string
		hash         string
		base64       string
	}{
		{"Meta", matchkey.Meta, "(650)555-1212", "US", "16505551212", "e323ec626319ca94ee8bff2e4c87cf613be6ea19919ed1364124e16807ab3176", ""},
		{"Meta", matchkey.Meta, "+1-555-123-4567", "", "15551234567", "d6736136ea896c1bfdc553e0e86e702c70d060d805696ca3e4e9e0961353860a", ""},
		{"Meta", matchkey.Meta, "+1 (616) 954-78 88", "", "16169547888", "", ""},
		{"Meta", matchkey.Meta, "+001 (616) 954-78 88", "", "16169547888", "", ""},
		{"Meta", matchkey.Meta, "1(650)123-4567", "us", "16501234567", "", ""},
		{"Google", matchkey.Google, "+1-800-555-0100", "", "+18005550100", "fb4f73a6ec5fdb7077d564cdd22c3554b43ce49168550c3b12c547b78c517b30", "+09zpuxf23B31WTN0iw1VLQ85JFoVQw7EsVHt4xRezA="},
		{"Google", matchkey.Google, "1 800 555 0100", "US", "+18005550100", "fb4f73a6ec5fdb7077d564cdd22c3554b43ce49168550c3b12c547b78c517b30", ""},
		{"Google", matchkey.Google, "+44-113-496-0987", "", "+441134960987", "0fac52d27ec377f8ad2f9de75d1f9bace693237e31868ae6f4616b8bbd0e94fb", "D6xS0n7Dd/itL53nXR+brOaTI34xhorm9GFri70OlPs="},
		{"UID2", matchkey.UID2, "1 (234) 567-8901", "US", "+12345678901", "10e6f0b47054a83359477dcb35231db6de5c69fb1816e1a6b98e192de9e5b9ee", "EObwtHBUqDNZR33LNSMdtt5cafsYFuGmuY4ZLenlue4="},
		{"TikTok", matchkey.TikTok, "+1 657 777 0000", "", "+16577770000", "a6e82c2f4091baff57a4f33d01efb65bfbeacbbfbcfaa9d0ff9f57d28d78fedb", ""},
		{"TikTok's help", matchkey.TikTok.WithPlus(false), "+37493828222", "", "37493828222", "65b7e6dcf6f4310f8d7cbfbd78289a753062fb054d6664fb9aaac5df66a422d4", ""},
		{"Snapchat", matchkey.Snapchat, "+1(706)-767-5127", "", "17067675127", "2fd199db6d3fa9fe754886ff1822f2867fcb104a6639495eca25c2978efe4ed4", ""},
		{"Snapchat", matchkey.Snapchat, "001(706)-767-5127", "", "17067675127", "2fd199db6d3fa9fe754886ff1822f2867fcb104a6639495eca25c2978efe4ed4", ""},
		{"Snapchat", matchkey.Snapchat, "+44 844 412 4653", "", "448444124653", "dc008fda46e2e64002cf2f82a4906236282d431c4f75e5b60bfe79fc48546383", ""},
	} {
		got, ok := tc.recipe.Phone(tc.raw, tc.country)
		switch {
		case !ok || got.String() != tc.text:
			t.Errorf("%s: %q of %q became %q, %t, want %q", tc.partner, tc.raw, tc.country, got, ok, tc.text)
		case tc.hash != "" && got.Hex() != tc.hash:
			t.Errorf("%s: %q: %s, want %s", tc.partner, tc.raw, got.Hex(), tc.hash)
		case tc.base64 != "" && got.Base64() != tc.base64:
			t.Errorf("%s: %q: %s, want %s", tc.partner, tc.raw, got.Base64(), tc.base64)
		}
	}
}

// One person at every partner, and what each mistake would make of it.
func TestOnePersonEverywhere(t *testing.T) {
	t.Parallel()
	const raw = "  Jane.Doe+Promo@GMail.com "
	const (
		plain    = "5f0d1df1fc49e30424381b57b1d4c73e067772a4267dde043a19b026935602c8"
		bare     = "d6117306485ed0e50afab3ac871e98f81699151f30281527d63ff5f233656c69"
		untagged = "831f6494ad6be4fcb3a724c3d5fef22d3ceffa3c62ef3a7984e45a0ea177f982"
	)
	for name, tc := range map[string]struct {
		recipe matchkey.Recipe
		want   string
	}{
		"Meta": {matchkey.Meta, plain}, "LinkedIn": {matchkey.LinkedIn, plain}, "Microsoft": {matchkey.Microsoft, plain},
		"Snapchat": {matchkey.Snapchat, plain}, "Pinterest": {matchkey.Pinterest, plain}, "X": {matchkey.X, plain},
		"Yahoo": {matchkey.Yahoo, plain}, "Criteo": {matchkey.Criteo, plain}, "TikTok": {matchkey.TikTok, plain},
		"Google": {matchkey.Google, bare}, "UID2": {matchkey.UID2, bare}, "Reddit": {matchkey.Reddit, bare},
		"TikTok's older help": {matchkey.TikTok.WithoutTags().WithoutDots(), bare},
		"TikTok's help":       {matchkey.TikTok.WithoutTags(), untagged},
		"Google's older help": {matchkey.Google.WithTags(), "3a627126a4392d8cec5f5d4eaa26639d3cfe852ebf1f1b49c3ffa61667798637"},
	} {
		got, ok := tc.recipe.Email(raw)
		if !ok || got.Hex() != tc.want {
			t.Errorf("%s: %q, %t, want the hash %s", name, got, ok, tc.want)
		}
	}
	sha, md := sha1.Sum([]byte("jane.doe+promo@gmail.com")), md5.Sum([]byte("jane.doe+promo@gmail.com"))
	for mistake, value := range map[string]string{
		"not normalised":     "2478f700273bf1eb3c1a24e7212c80f20437bf00e94ee6bf58e4f4db4fe6fc1c",
		"not in lower case":  "0cba52013f15961947314f2247af8afc075d2c2f569da4337728775a1b3235ce",
		"a newline behind":   "fcbc87f44bb2f9a732e90e04135c3b4a438166a24e540dbfaa1de1673a60c66e",
		"hashed twice":       "33382566b69f5857aacf774920e340a709e63bed702c1b4acc2a3fed6b50e16d",
		"MD5":                hex.EncodeToString(md[:]),
		"SHA-1":              hex.EncodeToString(sha[:]),
		"UID2, unnormalised": "5692d7129e4dd5b8ff5755b38e066c0be15fb98767b403b2c125483b4d0510f1",
	} {
		for _, recipe := range []matchkey.Recipe{matchkey.Meta, matchkey.Google, matchkey.UID2, matchkey.TikTok} {
			if got, _ := recipe.Email(raw); got.Hex() == value {
				t.Errorf("the recipe makes this mistake: %s", mistake)
			}
		}
	}
	for name, tc := range map[string]struct {
		recipe matchkey.Recipe
		want   string
	}{
		"Meta":   {matchkey.Meta, "7e25b7844dc82e53d76a507d7f6130832c805e097c1e038793c36ce22c358132"},
		"Google": {matchkey.Google, "26fe61aab2698bb3696dc47387e6c64172c6c716727917caaf6ff965d030cb3d"},
	} {
		for _, country := range []string{"DE", "de", "FR", ""} { // the number names its own
			if got, ok := tc.recipe.Phone("+49 (0)171 1234567", country); !ok || got.Hex() != tc.want {
				t.Errorf("%s, country %q: %q, %t, want the hash %s", name, country, got, ok, tc.want)
			}
		}
		if got, ok := tc.recipe.Phone("0171 1234567", "DE"); !ok || got.Hex() != tc.want {
			t.Errorf("%s: %q, %t, want the hash %s", name, got, ok, tc.want)
		}
	}
}

func TestWhatHasNoKey(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{
		"", " ", "null", "undefined", "NaN", "a@b", "@b.c", "@example.com", "quinn", "test@example", ".test@example.com", "test..test@example.com",
		"test@@example.com", "te st@example.com", "test@exa mple.com", " ...@gmail.com", "+tag@gmail.com", "a@example..com", "a@-example.com",
		"Ada <ada@example.com>", "a@example.c", "null@null", strings.Repeat("a", 250) + "@example.com",
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
		"EB045D78D273107348B0300C01D29B7552D622ABBC6FAF81B3EC55359AA9950C",
	} {
		if got, ok := matchkey.Google.Email(raw); ok {
			t.Errorf("the e-mail address %q became %q", raw, got)
		}
	}
	for _, tc := range [][2]string{
		{"", "US"},
		{"null", "US"},
		{"0171 1234567", ""},
		{"0171 1234567", "Germany"},
		{"650 555 1212", "XX"},
		{"12", "US"},
		{"++++", "US"},
		{"+abc-DEF", "US"},
		{"1-800-FLOWERS", "US"},
		{"+1 650 555 1212 ext. 7", "US"},
		{"+999 123 456 789", ""},
		{"e323ec626319ca94ee8bff2e4c87cf613be6ea19919ed1364124e16807ab3176", "US"},
		{strings.Repeat("1", 100), "US"},
	} {
		if got, ok := matchkey.Google.Phone(tc[0], tc[1]); ok {
			t.Errorf("the phone number %q of %q became %q", tc[0], tc[1], got)
		}
	}
	for _, raw := range []string{"", "00000000-0000-0000-0000-000000000000", "5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B2", "5F3A2B189C4D4E7FB8E217D3A1E69B250000", "5G3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25"} {
		if got, ok := matchkey.Device(raw); ok {
			t.Errorf("the device id %q became %q", raw, got)
		}
	}
}

func TestAHashIsNeverHashedAgain(t *testing.T) {
	t.Parallel()
	const hash = "62a14e44f765419d10fea99367361a727c12365e2520f32218d505ed9aa0f62f"
	for _, raw := range []string{hash, strings.ToUpper(hash), "  " + hash + "\n"} {
		got, ok := matchkey.Meta.Email(raw)
		if !ok || !got.Hashed() || got.Hex() != hash || got.Base64() != "YqFORPdlQZ0Q/qmTZzYacnwSNl4lIPMiGNUF7Zqg9i8=" {
			t.Errorf("%q became %q, %s, %s, %t", raw, got, got.Hex(), got.Base64(), ok)
		}
	}
	if got, ok := matchkey.Meta.Email("john_smith@gmail.com"); !ok || got.Hashed() {
		t.Errorf("an address is taken for a hash: %q, %t", got, ok)
	}
}

func TestOther(t *testing.T) {
	t.Parallel()
	const hash = "62a14e44f765419d10fea99367361a727c12365e2520f32218d505ed9aa0f62f"
	for raw, want := range map[string]string{
		" Ada\t": "ADA", "none": "", "undefined": "", " ": "", strings.ToUpper(hash): hash, matchkey.Hex("null"): "",
	} {
		got, ok := matchkey.Other(raw, strings.ToUpper)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q became %q, %t, want %q", raw, got, ok, want)
		}
	}
	if got, ok := matchkey.Other("Ada", func(string) string { return "" }); ok {
		t.Errorf("what the rule refuses became %q", got)
	}
}

func TestDevice(t *testing.T) {
	t.Parallel()
	got, ok := matchkey.Device(" 5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25")
	if !ok || got.String() != "5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25" || got.Hex() != "83dc3f5f32b9472613b0f038d36f22585a609d018af6f6067f50da318bf354bd" {
		t.Errorf("%q, %s, %t", got, got.Hex(), ok)
	}
}

func FuzzRecipes(f *testing.F) {
	for _, s := range []string{"", "a@b.co", "+1 650 555 1212", "+", "@", "null", "\x00", "a+b@gmail.com", "٠١٢٣", "+٤٩١٧١١٢٣٤٥٦٧", "ß@ß.de", "ı@example.com"} {
		f.Add(s, "US")
	}
	f.Fuzz(func(t *testing.T, raw, country string) {
		for _, recipe := range []matchkey.Recipe{matchkey.Meta, matchkey.Google, matchkey.Reddit} {
			if a, ok := recipe.Email(raw); ok {
				if again, ok := recipe.Email(a.String()); !ok || again != a {
					t.Errorf("%q became %q, and that %q, %t", raw, a, again, ok)
				}
				if matchkey.Poisoned(a.Hex()) {
					t.Errorf("%q became poison", raw)
				}
			}
			if p, ok := recipe.Phone(raw, country); ok {
				if strings.Trim(p.String(), "+0123456789") != "" {
					t.Errorf("%q became %q", raw, p)
				}
				if again, ok := recipe.WithPlus(true).Phone("+"+strings.TrimPrefix(p.String(), "+"), ""); !ok || again.String() != "+"+strings.TrimPrefix(p.String(), "+") {
					t.Errorf("%q became %q, and that %q, %t", raw, p, again, ok)
				}
			}
		}
	})
}
